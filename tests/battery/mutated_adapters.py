"""Adapter folders as a stranger may hand them over: each command reads them, or refuses them in words."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from calls import Call, Tally, call
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

__all__ = ["COMMANDS", "explained", "mutate_adapters"]

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
BASE: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base that the shipped example's facts name, which no Hub here has."""
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "ranks": ("ranks", "{adapter}", "--json"),
    "ranks --plot": ("ranks", "{adapter}", "--plot", "{out}.png"),
    "compress": ("compress", "{adapter}", "{out}", "--budget", "50%"),
    "export": ("export", "{adapter}", "{out}", "--as", "portable", "--no-check"),
    "export compact": ("export", "{adapter}", "{out}", "--as", "compact"),
    "merge": ("merge", "{adapter}", "{out}", "--no-check"),
    "card": ("card", "{adapter}"),
    "push": ("push", "{adapter}", "me/adapter", "--license", "mit", "--allow", BASE, "--dry-run"),
}
"""What is called on each folder; `{out}` is a new name beside it."""

TEXTS: Final = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "../../outside", "/etc/passwd", "C:\\x", "a\x00b", "\x1b[2J\x1b[1;1H", "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10**9) %}x{% endfor %}", "(a+)+$", "[", "<script>alert(1)</script>", "![x](http://a.b/c.png)",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.x.lora_A.weight", "LORA",
        "ADALORA", "PREFIX_TUNING", "all-linear", "x" * 5000, "\ud800", "---\nlicense: mit\n---", "F32", "BF16", "I64",
    ]),
)  # fmt: skip
NUMBERS: Final = st.one_of(
    st.integers(-3, 9), st.sampled_from([2**31, 2**63, -(2**63), 10**400, float("nan"), float("inf"), 1e308, 0.5])
)
ANYTHING: Final = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


class _Runs:
    """A pickle that tells on itself when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


@st.composite
def changed_json(draw: st.DrawFn, value: Any, depth: int = 4) -> Any:
    """Return a JSON value with one place in it changed, taken away or added."""
    if isinstance(value, (dict, list)) and value and depth and draw(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copied = draw(st.sampled_from(keys)), value.copy()
        if draw(st.integers(0, 4)):
            copied[key] = draw(changed_json(value[key], depth - 1))
        else:
            del copied[key]
        if isinstance(copied, dict) and not draw(st.integers(0, 5)):
            copied[draw(TEXTS)] = draw(ANYTHING)
        return copied
    return draw(ANYTHING)


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Return bytes with some changed, put in or cut off."""
    at = draw(st.integers(0, len(data)))
    match draw(st.sampled_from(["cut", "flip", "insert", "repeat", "empty"])):
        case "cut":
            return data[:at]
        case "flip":
            return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 8 :]
        case "insert":
            return data[:at] + draw(st.binary(max_size=16)) + data[at:]
        case "repeat":
            return data[:at] + data
        case _:
            return b""


def with_header(data: bytes, header: Any, length: int | None = None) -> bytes:
    """Return a safetensors file with another header, and if wished with an untrue length of it."""
    old = int.from_bytes(data[:8], "little")
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data[8 + old :]


@st.composite
def changed_weights(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a weights file with numbers, header or length changed."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    match draw(st.sampled_from(["number", "dtype", "header", "length", "bytes", "nested", "huge"])):
        case "number":
            at = start + 4 * draw(st.integers(0, (len(data) - start) // 4 - 1))
            worst = [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f", b"\x01\x00\x00\x00"]
            return data[:at] + draw(st.sampled_from(worst)) + data[at + 4 :]
        case "dtype":
            name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
            other = {
                **header[name],
                "dtype": draw(st.sampled_from(["F64", "F16", "I32", "U32", "F8_E4M3", "BOOL", "C64"])),
            }
            return with_header(data, {**header, name: other})
        case "header":
            return with_header(data, draw(changed_json(header)))
        case "length":
            return with_header(data, header, draw(st.sampled_from([0, 1, 7, 2**25 + 1, 2**40, 2**64 - 1])))
        case "nested":
            return with_header(data, b'{"a":' * draw(st.sampled_from([50, 5000, 200_000])))
        case "huge":
            entry = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
            return with_header(data, {**header, "base_model.model.model.x.lora_A.weight": entry})
        case _:
            return draw(changed_bytes(data))


def _put_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Runs()))


def _put_link(folder: Path) -> None:
    (folder / "notes.txt").symlink_to("/etc/passwd")


def _link_weights_away(folder: Path) -> None:
    shutil.move(folder / WEIGHTS, folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to("../elsewhere")


def _make_folder_of_config(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


def _put_many(folder: Path) -> None:
    for number in range(300):
        (folder / f"checkpoint-{number}").mkdir()
        (folder / f"checkpoint-{number}" / "optimizer.pt").write_bytes(pickle.dumps(_Runs()))


PLANTED: Final[list[Callable[[Path], None]]] = [
    _put_pickle, _put_link, _link_weights_away, _make_folder_of_config, _put_many
]  # fmt: skip


@st.composite
def changes(draw: st.DrawFn, pristine: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """Return what becomes of a folder: file → new bytes, or what is done to it."""
    found: dict[str, bytes | Callable[[Path], None]] = {}
    for what in draw(st.sets(st.sampled_from(["weights", "config", "facts", "card", "planted"]), min_size=1)):
        match what:
            case "weights":
                found[WEIGHTS] = draw(changed_weights((pristine / WEIGHTS).read_bytes()))
            case "planted":
                found["planted"] = draw(st.sampled_from(PLANTED))
            case "card":
                found["README.md"] = draw(changed_bytes((pristine / "README.md").read_bytes()))
            case _:
                name = CONFIG if what == "config" else "facts.json"
                data = (pristine / name).read_bytes()
                new = draw(changed_json(json.loads(data))) if draw(st.integers(0, 4)) else draw(changed_bytes(data))
                found[name] = new if isinstance(new, bytes) else json.dumps(new).encode("utf8", "surrogatepass")
    return found


def apply(found: dict[str, bytes | Callable[[Path], None]], folder: Path) -> None:
    """Change a folder."""
    for name, new in found.items():
        if isinstance(new, bytes):
            (folder / name).write_bytes(new)
    if callable(plant := found.get("planted")):
        plant(folder)


def explained(adapter: Path) -> Path:
    """Give an adapter's folder the facts and card of the example that comes with the package."""
    from hf_lora_ext.resources import shipped_folder

    for name in ("facts.json", "README.md"):
        shutil.copy(shipped_folder("model_cards") / "quickstart" / name, adapter)
    return adapter


def tried(command: str, folder: Path, caches: Sequence[Path]) -> Call:
    """Call a command on `folder/adapter`, which only `card` may change; what is written lies beside it."""
    adapter = folder / "adapter"
    arguments = [word.format(adapter=adapter, out=folder / "out") for word in COMMANDS[command]]
    return call(*arguments, allowed=[folder, *caches], kept=[] if command == "card" else [adapter])


def half_written(folder: Path) -> list[str]:
    """Return what lies beside an adapter that no command should leave there."""
    return [
        path.name
        for path in folder.iterdir()
        if path.name not in {"adapter", "elsewhere", "out", "out.png", "out_spectra.png"}
    ]


def mutate_adapters(pristine: Path, scratch: Path, count: int, seed: int, caches: Sequence[Path] = ()) -> list[Tally]:
    """Call a command on each of `count` changed copies of an adapter's folder; return the endings by command.

    Args:
        pristine: The adapter, with facts and card.
        scratch: Where the copies are made; those that ended wrong stay there.
        count: Copies.
        seed: Of the changes.
        caches: Folders of libraries' own that may be written.
    """
    tallies = {command: Tally(name=command) for command in COMMANDS}
    number = 0

    @seeded(seed)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(changes(pristine))
    def judge(found: dict[str, bytes | Callable[[Path], None]]) -> None:
        nonlocal number
        number += 1
        command = [*COMMANDS][number % len(COMMANDS)]
        folder = scratch / str(number)
        shutil.copytree(pristine, folder / "adapter")
        apply(found, folder / "adapter")
        result = tried(command, folder, caches)
        left = half_written(folder)
        ending = result.ending if not left else "left half written"
        tallies[command].add(ending, f"{folder}: {result.said} {result.strayed} {left}")
        if ending in ("done", "refused"):
            shutil.rmtree(folder)

    judge()
    return [*tallies.values()]
