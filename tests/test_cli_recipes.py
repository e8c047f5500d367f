"""`hf-lora recipes` and `hf-lora init`: what comes with the package, listed, shown, described and copied."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import outcome, run_python

from hf_lora_ext import ConfigError, load_recipe
from hf_lora_ext.resources import shipped_folder
from hf_lora_ext.runs.shipped import recipe_file, recipes_page, shipped_recipe, shipped_recipes, with_memory_line

NAMES = [shipped.name for shipped in shipped_recipes()]


def test_every_recipe_is_listed_with_what_it_takes(capsys):
    code, out, _ = outcome(capsys, "recipes")
    assert code == 0
    assert [name for name in NAMES if name not in out] == []
    listed = json.loads(outcome(capsys, "recipes", "--json")[1])
    assert [told["name"] for told in listed] == NAMES
    assert all(told["purpose"] and told["command"] for told in listed)
    seven = next(told for told in listed if told["name"] == "qlora_7b")
    assert (seven["method"], seven["rank"], seven["hardware"]) == ("qlora", 8, "a GPU of 24 GiB")
    assert 10 < seven["needed_gib"] < 24


def test_the_list_is_there_without_torch_and_fits_a_narrow_terminal():
    script = (
        "import sys; from hf_lora_ext.cli import main; main(['recipes']); "
        "print([m for m in ('torch', 'numpy', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = run_python("-c", script, COLUMNS="80")
    *table, loaded = done.stdout.splitlines()
    assert loaded == "[]", done.stderr
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table if line.split()[:1] and line.split()[0] in NAMES] == NAMES


def test_one_is_shown_as_it_is(capsys):
    text = shipped_recipe("quickstart").file.read_text(encoding="utf8")
    assert outcome(capsys, "recipes", "quickstart")[1] == text
    assert json.loads(outcome(capsys, "recipes", "quickstart", "--json")[1])["text"] == text


@pytest.mark.parametrize("verb", ["recipes", "init", "train"])
def test_a_name_that_is_not_known_is_told_with_the_nearest(capsys, verb: str):
    code, _, err = outcome(capsys, verb, "quikstart")
    assert code == 2
    assert "quickstart" in err


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_run_and_its_command_names_the_copy(name: str, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = outcome(capsys, "init", name, "mine.yaml")
    assert (code, out) == (0, "wrote mine.yaml; next: hf-lora train mine.yaml\n")
    assert load_recipe("mine.yaml") == shipped_recipe(name).recipe
    text = Path("mine.yaml").read_text(encoding="utf8")
    assert re.search(r"hf-lora train mine\.yaml", text)
    assert "recipes/" + name not in text


def test_a_copy_is_never_written_over_a_file(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("mine")
    code, _, err = outcome(capsys, "init", "quickstart")
    assert code == 2
    assert "quickstart.yaml exists and is left as it is; name another file" in err
    assert Path("quickstart.yaml").read_text() == "mine"
    assert "No such file" in outcome(capsys, "init", "quickstart", "no/folder.yaml")[2]


def test_a_bare_name_is_a_shipped_recipe_and_a_file_is_always_itself(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("quickstart") == shipped_recipe("quickstart").file
    for path in ("quickstart.yaml", "./quickstart", "recipes/quickstart.yaml"):
        assert recipe_file(path) == Path(path)
    Path("quickstart").write_text("")
    assert recipe_file("quickstart") == Path("quickstart")
    Path("dpo").mkdir()
    assert recipe_file("dpo") == shipped_recipe("dpo").file, "a folder is no recipe"
    with pytest.raises(ConfigError, match="no recipe 'sweep_rank' comes with"):
        recipe_file("sweep_rank")


def test_recipes_and_their_page_say_what_the_planner_says_of_them():
    """What fails here is mended by `make recipes`."""
    for shipped in shipped_recipes():
        text = shipped.file.read_text(encoding="utf8")
        assert with_memory_line(text, shipped.memory) == text
    assert (shipped_folder("recipes") / "README.md").read_text(encoding="utf8") == recipes_page()


def test_what_is_out_of_date_is_written_anew_once(capsys, tmp_path: Path, monkeypatch):
    real = shipped_folder("recipes")
    for name in ("dpo.yaml", "qlora_7b.yaml"):
        shutil.copy(real / name, tmp_path)
    monkeypatch.setattr("hf_lora_ext.runs.shipped.shipped_folder", lambda name: tmp_path)
    stale, bare = tmp_path / "qlora_7b.yaml", tmp_path / "dpo.yaml"
    stale.write_text(re.sub("Memory:.*", "Memory:   1 of 2 GiB.", stale.read_text(encoding="utf8")), encoding="utf8")
    bare.write_text(re.sub("# Memory:.*\n", "", bare.read_text(encoding="utf8")), encoding="utf8")
    page = tmp_path / "README.md"
    assert outcome(capsys, "recipes", "--write")[:2] == (0, f"wrote {bare}\nwrote {stale}\nwrote {page}\n")
    for file in (bare, stale):
        assert file.read_bytes() == (real / file.name).read_bytes()
    assert page.read_text(encoding="utf8") == recipes_page()
    assert outcome(capsys, "recipes", "--write")[:2] == (0, "")
    assert outcome(capsys, "recipes", "quickstart", "--write")[0] == 2


def test_a_recipe_without_declared_hardware_says_nothing_of_memory():
    assert with_memory_line("# Do.\n# Memory:   1 GiB.\n# Command:  x\n", "") == "# Do.\n# Command:  x\n"
