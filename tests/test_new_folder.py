"""A folder is written whole or not at all, over nothing, and may be read by whom new folders may."""

from pathlib import Path

import pytest

from hf_lora_ext.errors import ConfigError
from hf_lora_ext.new_folder import copy_chosen, whole_folder
from hf_lora_ext.push.release import goes_along


def test_a_folder_is_there_only_when_all_of_it_is(tmp_path: Path):
    with whole_folder(tmp_path / "deep" / "new") as draft:
        (draft / "file").write_text("whole")
        assert not (tmp_path / "deep" / "new").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    assert (tmp_path / "deep" / "new" / "file").read_text() == "whole"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_was_interrupted_leaves_nothing(stop: type[BaseException], tmp_path: Path):
    def write() -> None:
        with whole_folder(tmp_path / "new") as draft:
            (draft / "file").write_text("half")
            raise stop

    with pytest.raises(stop):
        write()
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_told_with_what_helps_and_leaves_nothing(tmp_path: Path):
    def write() -> None:
        with whole_folder(tmp_path / "new") as draft:
            (draft / "file").write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written \(No space left.*name another folder"):
        write()
    with pytest.raises(ConfigError, match=r"MiB free, and this may need .* another disk"):
        whole_folder(tmp_path / "new", needed_bytes=2**80).__enter__()
    assert not any(tmp_path.iterdir())


def test_a_new_folder_may_be_read_by_whom_other_new_folders_may(tmp_path: Path):
    (tmp_path / "usual").mkdir()
    with whole_folder(tmp_path / "new"):
        pass
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_empty_folder_is_filled_and_what_holds_something_is_left_alone(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as draft:
        (draft / "file").touch()
    (tmp_path / "file").touch()
    for taken in ("empty", "file"):
        with pytest.raises(ConfigError, match="is there already, and nothing is overwritten"):
            whole_folder(tmp_path / taken).__enter__()


def test_tokenizer_and_terms_go_along_and_what_describes_the_weights_does_not(tmp_path: Path):
    along = ["LICENSE.txt", "NOTICE", "additional_chat_templates/tool.jinja", "chat_template.jinja", "merges.txt",
             "tokenizer.model", "tokenizer_config.json", "vocab.json"]  # fmt: skip
    stays = ["README.md", "adapter_config.json", "facts.json", "rank_history.json", "ranks.png", "optimizer.pt",
             "checkpoints/tokenizer.json", ".eval_results/mmlu.yaml"]  # fmt: skip
    for name in (*along, *stays):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    copy_chosen(tmp_path / "source", tmp_path / "target", goes_along)
    copied = sorted(p.relative_to(tmp_path / "target").as_posix() for p in (tmp_path / "target").rglob("*.*"))
    assert copied == sorted(name for name in along if "." in name)
    assert (tmp_path / "target" / "NOTICE").read_text() == "NOTICE"
