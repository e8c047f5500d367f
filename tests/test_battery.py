"""The battery at small counts, and that each of its watches can fail. In full: `make battery`."""

import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from fault_cells import Outcome
from git_hub_state import Hub
from push_runs import pushing_to, saved_adapter

BATTERY = Path(__file__).parent / "battery"
sys.path.append(str(BATTERY))

import calls  # noqa: E402 - the path comes first
import flat  # noqa: E402
import mutated_adapters  # noqa: E402
import mutated_recipes  # noqa: E402
import push_faults  # noqa: E402
import strangers  # noqa: E402

GOOD = {"done", "refused"}


@pytest.fixture(scope="module")
def pristine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with facts and card."""
    import matplotlib.font_manager  # noqa: F401 - makes its folders and cache

    return mutated_adapters.explained(saved_adapter(tmp_path_factory.mktemp("pristine") / "adapter", tiny_model))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Hub, and temporary files in the test's own folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where libraries may write while a command is watched."""
    caches = [os.environ.get(name) for name in ("HF_HOME", "HF_DATASETS_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME")]
    return [tmp_path_factory.getbasetemp(), Path.home() / ".cache", *(Path(place) for place in caches if place)]


def test_changed_recipes_are_recipes_or_refused_in_words(
    offline: None, tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    found = mutated_recipes.mutate_recipes(tiny_model, tmp_path / "files", 40, 7, places(tmp_path_factory))
    for tally in found:
        assert tally.endings.keys() <= GOOD, tally.wrong
        assert min(tally.endings[ending] for ending in GOOD) > 2, tally


def test_changed_adapters_are_read_or_refused_in_words(
    offline: None, pristine: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    found = mutated_adapters.mutate_adapters(pristine, tmp_path / "cases", 32, 7, places(tmp_path_factory))
    assert {tally.name for tally in found} == set(mutated_adapters.COMMANDS)
    for tally in found:
        assert tally.endings.keys() <= GOOD, tally.wrong
    assert sum(tally.endings["done"] for tally in found) > 2


def test_no_template_reaches_out_of_a_card(pristine: Path, tmp_path: Path):
    tally = strangers.plant_templates(pristine, tmp_path)
    assert tally.endings == {"refused": len(strangers.TEMPLATES)}, tally.wrong


def test_no_name_that_is_none_reaches_the_hub(git_hub: Hub, pristine: Path):
    with pushing_to(git_hub):
        tally = strangers.plant_names(pristine, git_hub)
    assert tally.endings == {"refused": 3 * len(strangers.NAMES)}, tally.wrong


class Runs:
    def __reduce__(self):
        return os.getcwd, ()


def test_what_must_not_be_touched_or_run_is_seen(tmp_path: Path):
    allowed, kept, other = (tmp_path / name for name in ("allowed", "kept", "other"))
    for folder in (allowed, kept, other):
        folder.mkdir()
    with calls.watched([allowed, kept], [kept]) as watch:
        (allowed / "a").write_text("a")
        (allowed / "b").mkdir()
        assert not watch.touched
        (kept / "a").write_text("a")
        (other / "a").write_text("a")
        (allowed / "a").rename(other / "b")
        (allowed / "link").symlink_to(other)
        (allowed / "link" / "c").write_text("through a link")
        pickle.loads(pickle.dumps(Runs()))
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert {Path(path).relative_to(tmp_path).as_posix() for path in watch.touched} >= {
        "kept/a", "other/a", "other/b", "other/c"
    }  # fmt: skip
    assert any(seen.startswith("unpickled") for seen in watch.forbidden)
    assert any(seen.startswith("ran") for seen in watch.forbidden)


@pytest.mark.parametrize(
    ("code", "said", "strayed", "ending"),
    [
        (0, "", (), "done"),
        (2, "hf-lora: no such recipe\n", (), "refused"),
        (2, "something\n", (), "unclear"),
        (2, "hf-lora: \x1b[2J\n", (), "unclear"),
        (1, "Traceback", (), "traceback"),
        (0, "", ("/etc/passwd",), "strayed"),
    ],
)
def test_an_ending_is_good_only_if_it_is_clear_and_touched_nothing(code, said, strayed, ending):
    assert calls.Call(code=code, said=said, strayed=strayed).ending == ending


def test_memory_that_grows_is_seen():
    steady = flat.Growth(tuple(10**8 + 2**20 * min(n, 5) for n in range(60)))
    assert steady.kib_each == 0
    assert flat._judged("saves", steady, 60, print).wrong == {}
    leaking = flat.Growth(tuple(10**8 + 2**14 * n for n in range(60)))
    assert leaking.kib_each == pytest.approx(16)
    assert "grows" in flat._judged("saves", leaking, 60, print).wrong
    assert "too few" in flat._judged("saves", steady, 61, print).wrong


def test_a_fault_of_the_matrix_ends_as_it_was_judged():
    def ended(**changes: object) -> str:
        usual = {"ended": "landed", "said": "", "struck": True, "commits": 1, "torn": False, "finally_commits": 1}
        return push_faults.ending_of(Outcome(**usual | changes))

    assert ended() == "done"
    assert ended(ended="gave up", said="again: `hf-lora push a b`", commits=0) == "refused"
    assert ended(torn=True, finally_commits=2) == "torn, twice, untrue"
    assert ended(struck=False) == "met no request"


def test_the_table_is_of_all_that_was_counted_and_tells_what_went_wrong():
    table = runpy.run_path(str(BATTERY / "__main__.py"))["table"]
    bad = {"name": "killed runs", "endings": {"done": 2, "other bytes": 1}, "wrong": {"other bytes": "run 2"},
           "beside": {"kills": 1_234}}  # fmt: skip
    text = table([{"seed": 5, "tallies": [bad]}])
    assert "| killed runs | 3 | 2 | 0 | 1 | 1,234 kills | 5 |" in text
    assert text.endswith("killed runs: other bytes: run 2")


@pytest.mark.slow
def test_the_battery_in_a_process_leaves_its_counts(tmp_path: Path):
    command = [sys.executable, BATTERY, "kills", "races", "--count", "1", "--seed", "3", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for trial in ("kills", "races"):
        found = json.loads((tmp_path / f"{trial}.json").read_text())
        assert (found["count"], found["seed"]) == (1, 3)
        assert found["tallies"][0]["endings"] == {"done": 1}
        assert found["versions"]["peft"]
    assert "| killed runs | 1 | 1 | 0 | 0 |" in done.stdout
