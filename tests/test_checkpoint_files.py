"""Checkpoints that were damaged after they were written: which file it is, said without opening a pickle."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_lora_ext.errors import ResumeError
from hf_lora_ext.runs.checkpoint_files import damage_in
from hf_lora_ext.runs.run_folder import checkpoint_to_resume

TENSORS = ("adapter_model.safetensors", "adaptive_rank_state.safetensors")
ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
TEXTS = ("adapter_config.json", "facts_progress.json", "overfit_progress.json")


class Runs:
    """A pickle that tells on itself when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    for name in TENSORS:
        save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, folder / name, metadata={"state": "{}"})
    for name in ARCHIVES:
        torch.save({"state": torch.ones(2)}, folder / name)
    for name in (*TEXTS, "trainer_state.json"):
        (folder / name).write_text(json.dumps({"step": 4}))
    (folder / "overfit_progress.json").write_text("null")
    return folder


def test_a_whole_checkpoint_has_no_damage(whole: Path):
    assert damage_in(whole) is None
    assert checkpoint_to_resume(whole.parent, processes=1) == whole


@pytest.mark.parametrize("name", [*TENSORS, *ARCHIVES, *TEXTS])
@pytest.mark.parametrize("damage", ["cut", "empty", "pickle"])
def test_a_file_that_cannot_be_read_is_named_and_never_unpickled(
    whole: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(whole.parent)
    data = (whole / name).read_bytes()
    (whole / name).write_bytes({"cut": data[:-3], "empty": b"", "pickle": pickle.dumps(Runs())}[damage])
    with pytest.raises(ResumeError, match=rf"checkpoint-4 was damaged after it was written \({name}: .*remove that"):
        checkpoint_to_resume(whole.parent, processes=1)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"{", b"\xff"])
def test_a_header_that_is_none_is_damage(whole: Path, header: bytes):
    (whole / TENSORS[0]).write_bytes(len(header).to_bytes(8, "little") + header)
    assert damage_in(whole) == f"{TENSORS[0]}: no header of safetensors"


def test_what_going_on_does_not_read_is_not_looked_at(whole: Path):
    for name in ("training_args.bin", "README.md", "facts.json"):
        (whole / name).write_bytes(b"\xff")
    assert damage_in(whole) is None
