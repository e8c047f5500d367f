"""Run folders: one recipe owns one; everything else is refused before a byte changes."""

import json
from dataclasses import replace

import pytest
from filelock import FileLock

from hf_lora_ext.cards.facts import Facts
from hf_lora_ext.errors import ConfigError, ResumeError
from hf_lora_ext.runs.recipe import DataChoice, Recipe, load_recipe
from hf_lora_ext.runs.run_folder import RunFolder, claimed, last_whole_checkpoint, owned_folder


@pytest.fixture
def recipe(tmp_path):
    return Recipe(model="me/model", output_dir=str(tmp_path / "new" / "run"), data=DataChoice(source="data.jsonl"))


@pytest.fixture
def owned(recipe):
    """The recipe's folder after its first checkpoint."""
    with claimed(recipe) as folder:
        checkpoint(folder.checkpoints, "checkpoint-1")
    return folder


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_fresh_folder_is_made_and_keeps_the_recipe(recipe):
    with claimed(recipe) as folder:
        assert load_recipe(folder.root / "recipe.yaml") == recipe
    assert {path.name for path in folder.root.iterdir()} <= {"recipe.yaml", ".lock"}


def test_an_empty_folder_may_be_used(recipe, tmp_path):
    (tmp_path / "new" / "run").mkdir(parents=True)
    with claimed(recipe) as folder:
        assert (folder.root / "recipe.yaml").is_file()


def test_the_same_recipe_goes_on_where_it_was(recipe, owned):
    (owned.root / "adapter.bin").write_text("kept")
    before = contents(owned.root)
    with claimed(recipe) as folder:
        assert folder == owned
    assert contents(owned.root) == before


def test_a_renamed_folder_is_still_the_recipe_s(recipe, owned, tmp_path):
    moved = tmp_path / "moved"
    owned.root.rename(moved)
    with claimed(replace(recipe, output_dir=str(moved))) as folder:
        assert folder.root == moved


def test_a_folder_survives_an_error_and_is_free_again(recipe):
    with pytest.raises(KeyError), claimed(recipe):
        raise KeyError
    with claimed(recipe) as folder:
        assert (folder.root / "recipe.yaml").is_file()


def test_a_torn_first_write_does_not_lock_the_recipe_out(recipe, tmp_path):
    (tmp_path / "new" / "run").mkdir(parents=True)
    (tmp_path / "new" / "run" / ".recipe.yaml.123.tmp").write_text("mod")
    with claimed(recipe) as folder:
        assert load_recipe(folder.root / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 4}, r"rank \(None there, 4 here\)"),
        ({"data": DataChoice(source="other.jsonl")}, r"data\.source \('data\.jsonl' there, 'other\.jsonl' here\)"),
        ({"training": {"max_steps": 3}}, r"training\.max_steps \(None there, 3 here\)"),
    ],
)
def test_another_recipe_is_refused_naming_what_differs(recipe, owned, change, named):
    before = contents(owned.root)
    with pytest.raises(ConfigError, match=rf"another run, which differs in {named}.*output_dir"):
        claimed(replace(recipe, **change)).__enter__()
    assert contents(owned.root) == before


def test_a_mended_recipe_takes_over_a_folder_where_nothing_was_reached(recipe):
    with claimed(recipe) as folder:
        checkpoint(folder.checkpoints, "checkpoint-1", state=None)
    mended = replace(recipe, rank=4)
    with claimed(mended) as folder:
        assert load_recipe(folder.root / "recipe.yaml") == mended


def test_a_folder_with_foreign_files_is_refused_untouched(recipe, tmp_path):
    root = tmp_path / "new" / "run"
    root.mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (root / name).write_text(name)
    before = contents(root)
    with pytest.raises(ConfigError, match=r"already holds a\.txt, b\.txt, c\.txt, …, and no run of ours; choose"):
        claimed(recipe).__enter__()
    assert contents(root) == before


@pytest.mark.parametrize("text", ["model: [", "model: m\nnew_key: 1\n", "", b"\xff\xfe"])
def test_an_unreadable_recipe_in_the_folder_is_a_resume_error(recipe, owned, text):
    (owned.root / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ResumeError, match=r"(?s)recipe\.yaml cannot be read by this version .*choose another"):
        claimed(recipe).__enter__()


def test_a_folder_in_use_is_refused_until_it_is_free(recipe, owned):
    with FileLock(owned.root / ".lock"), pytest.raises(ConfigError, match="in use by another run; wait for it"):
        claimed(recipe).__enter__()
    with claimed(recipe) as folder:
        assert folder == owned


def test_a_second_claim_while_one_is_held_is_refused(recipe):
    with claimed(recipe), pytest.raises(ConfigError, match="in use by another run"):
        claimed(recipe).__enter__()


def test_a_file_in_the_way_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file, needed a folder; choose another"):
        claimed(replace(recipe, output_dir=str(tmp_path / "file"))).__enter__()
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\); choose another"):
        claimed(replace(recipe, output_dir=str(tmp_path / "file" / "below"))).__enter__()


def test_a_broken_link_in_the_way_is_refused(recipe, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="broken link"):
        claimed(replace(recipe, output_dir=str(tmp_path / "link"))).__enter__()
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_is_refused_before_the_folder_is_made(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"MiB free, the run needs about .*free some, or choose"):
        claimed(recipe, needed_bytes=2**70).__enter__()
    assert not (tmp_path / "new").exists()


def test_a_run_is_finished_once_its_facts_say_so(owned):
    assert not owned.is_finished
    owned.facts.write_text(Facts(run={"steps": 3}).to_json())
    assert not owned.is_finished
    owned.facts.write_text(Facts(run={"finished": True}).to_json())
    assert owned.is_finished


def test_looking_up_a_folder_checks_its_owner_and_writes_nothing(recipe, tmp_path):
    assert owned_folder(recipe).root == tmp_path / "new" / "run"
    assert list(tmp_path.iterdir()) == []
    with claimed(recipe) as folder:
        assert owned_folder(recipe) == folder
        checkpoint(folder.checkpoints, "checkpoint-1")
    with pytest.raises(ConfigError, match=r"differs in seed \(0 there, 1 here\)"):
        owned_folder(replace(recipe, seed=1))


def checkpoint(folder, name, state='{"global_step": 1}'):
    path = folder / name
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_newest_checkpoint_counts_by_number(tmp_path):
    for step in (9, 100, 20):
        checkpoint(tmp_path, f"checkpoint-{step}", json.dumps({"global_step": step}))
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1', "\0\0\0"])
def test_torn_checkpoints_are_passed_over(tmp_path, state):
    whole = checkpoint(tmp_path, "checkpoint-10")
    checkpoint(tmp_path, "checkpoint-20", state)
    assert last_whole_checkpoint(tmp_path) == whole


def test_other_names_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-", "checkpoint-best", "checkpoint-10.bak", "tmp-checkpoint-5", "checkpoint-²"):
        checkpoint(tmp_path, name)
    (tmp_path / "checkpoint-30").write_text("a file")
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "none") is None


def test_a_run_folder_names_its_files(tmp_path):
    folder = RunFolder(tmp_path)
    files = {folder.checkpoints, folder.facts, folder.card, folder.loss_curve}
    assert {path.name for path in files} == {"checkpoints", "facts.json", "README.md", "loss_curve.png"}
