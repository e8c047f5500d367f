"""One push at a time; the newest waits, an older one gives way; a folder stays exactly where its push failed."""

import threading
from pathlib import Path

from hf_lora_ext import PushError, PushResult
from hf_lora_ext.push.gathering import Aside
from hf_lora_ext.push.queue import AGAIN, Parcel, PushQueue, remove_unfinished


def parcel(folder: Path, number: int) -> Parcel:
    aside = folder / f"step-{number}"
    aside.mkdir()
    (aside / "x").write_text("x")
    return Parcel(aside=Aside(aside, (aside,)), title=f"Step {number}", command=f"push {aside}")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pushed(parcel: Parcel, at: object) -> PushResult:
    return PushResult(status="pushed", repo_id="me/x", commit="c")


def test_a_newer_one_takes_the_place_of_one_that_waits_and_never_of_one_that_goes(tmp_path: Path):
    gate, sent, together = threading.Event(), [], []

    def send(parcel: Parcel, at: object) -> PushResult:
        together.append(parcel.title)
        assert len(together) == 1
        gate.wait(30)
        sent.append(together.pop())
        return pushed(parcel, at)

    queue = PushQueue(send)
    replaced = [queue.put(parcel(tmp_path, number)) for number in range(1, 6)]
    assert [one.title if one else None for one in replaced] == [None, None, "Step 2", "Step 3", "Step 4"]
    gate.set()
    assert queue.wait(30)
    assert sent == ["Step 1", "Step 5"]
    assert left(tmp_path) == []


def test_of_what_failed_the_newest_stays_with_its_command_until_a_newer_one_lands(tmp_path: Path):
    fails = [True, True, False]

    def send(parcel: Parcel, at: object) -> PushResult:
        if fails.pop(0):
            raise PushError("the Hub is out of reach")
        return pushed(parcel, at)

    queue = PushQueue(send)
    kept = []
    for number in (1, 2, 3):
        queue.put(parcel(tmp_path, number))
        queue.wait(30)
        kept.append(left(tmp_path))
    assert kept == [["step-1"], ["step-2"], []]
    problems = [outcome.problem for outcome in queue.outcomes()]
    assert [problem and problem.partition("\n")[0] for problem in problems] == ["the Hub is out of reach"] * 2 + [None]
    assert f"again: `push {tmp_path / 'step-2'}`" in problems[1]
    assert queue.outcomes() == []


def test_a_bug_in_a_push_is_told_and_the_next_one_goes(tmp_path: Path):
    fails = [ZeroDivisionError("x"), None]

    def send(parcel: Parcel, at: object) -> PushResult:
        if (error := fails.pop(0)) is not None:
            raise error
        return pushed(parcel, at)

    queue = PushQueue(send)
    for number in (1, 2):
        queue.put(parcel(tmp_path, number))
        assert queue.wait(30)
    first, second = queue.outcomes()
    assert first.problem.startswith("ZeroDivisionError: x\nagain: ")
    assert second.result.status == "pushed"


def test_what_is_given_up_keeps_its_note_and_what_a_killed_run_left_goes(tmp_path: Path):
    gate = threading.Event()

    def send(parcel: Parcel, at: object) -> PushResult:
        gate.wait(30)
        return pushed(parcel, at)

    queue = PushQueue(send)
    queue.put(parcel(tmp_path, 1))
    assert not queue.wait(0.01)
    given_up = queue.abandon()
    parcel(tmp_path, 2)
    remove_unfinished(tmp_path)
    assert left(tmp_path) == ["step-1"]
    assert given_up.command in (given_up.aside.folder / AGAIN).read_text()
    gate.set()
    assert queue.wait(30)
    remove_unfinished(tmp_path / "nothing")
