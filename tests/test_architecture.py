"""The house rules of DESIGN: layers import only downward; what is imported late is listed with its reason."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_lora_ext

PACKAGE = Path(hf_lora_ext.__file__).parent
SHIPPED = {"recipes", "model_cards"}
"""Folders that a wheel has inside the package and the repository beside it: scripts and texts, no modules."""

LAYERS = {
    "errors": 0, "sizes": 0, "blocks": 0, "decoders": 0, "older_families": 0, "families": 0,
    "hardware": 0, "choices": 0, "targets": 0, "attention": 0, "wishes": 0,
    "plans": 0, "habits": 0, "anatomy": 0, "activations": 0, "states": 0, "memory": 0, "fitting": 0,
    "plan_choices": 0, "remedies": 0, "popular_models": 0, "host_memory": 0,
    "configuration": 0, "presets": 0, "explanation": 0, "recipe": 0, "recipe_rules": 0, "facts": 0, "cards": 0,
    "card_metadata": 0, "card_view": 0, "card_usage": 0, "card_ownership": 0, "markdown": 0, "licences": 0,
    "layer_ranks": 0, "emissions": 0,
    "resources": 0, "strict_yaml": 0, "rank_schedule": 0, "rank_events": 0, "allocation": 0,
    "methods": 0, "decisions": 0, "arguments": 0, "emission": 0, "run_choices": 0, "launch": 0, "advice": 0,
    "landing": 0, "leaks": 0, "release": 0, "release_terms": 0, "release_card": 0, "push_plan": 0,
    "push_schedule": 0,
    "orthogonality": 1, "low_rank": 1, "optimizer_state": 1, "growth": 1,
    "stored_adapter": 2,
    "adapters": 2, "adalora": 2, "starts": 2,
    "lora_layers": 2, "probes": 2, "rank_criteria": 2, "rank_change": 2, "rank_storage": 2,
    "sketches": 2, "rank_moves": 2,
    "machine": 3, "hub": 3, "base_models": 3, "shape_sources": 3, "data": 3, "data_files": 3, "stdlib_docstrings": 3,
    "plots": 3, "base_terms": 3,
    "evaluation": 3, "run_folder": 3, "stored_weights": 3,
    "callbacks": 4, "training": 4, "runner": 4,
    "gathering": 4, "preflight": 4, "verification": 4, "push": 4, "rollbacks": 4, "push_queue": 4, "trainers": 4,
    "cli": 5, "__init__": 5,
}  # fmt: skip
THIRD_PARTY = {
    0: set(),
    1: {"torch"},
    2: {"torch", "peft", "safetensors"},
    3: {"torch", "peft", "safetensors", "huggingface_hub", "matplotlib", "transformers", "datasets"},
    4: {"torch", "peft", "safetensors", "huggingface_hub", "matplotlib", "transformers", "datasets", "trl"},
    5: {"click"},
}
# (module, what it imports inside a function) → why the rule is bent there. Layers 3 to 5 import libraries late
# so that a preset or a help text stays instant; that needs no entry, but importing *upward* always does.
LATE = {
    ("configuration", "training"): "Preset's properties build library objects on demand",
    ("presets", "base_models"): "preset() gathers before it decides",
    ("presets", "machine"): "preset() gathers before it decides",
    ("strict_yaml", "yaml"): "0.03 s that a preset does not need",
    ("cards", "jinja2"): "0.06 s that only rendering needs",
}


def sources() -> list[tuple[str, Path]]:
    """Every module of the package with the name of its room: a file, or the folder it is in."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in SHIPPED:
            found.append((parts[0], path))
    return found


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (imported room or library, whether late) for each import that runs."""
    depth = len(path.relative_to(PACKAGE).parts)

    def walk(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name.partition(".")[0], late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                if child.level == 0:
                    yield (child.module or "").partition(".")[0], late
                elif child.level == depth:
                    names = [child.module.partition(".")[0]] if child.module else [a.name for a in child.names]
                    yield from ((name, late) for name in names)
            else:
                yield from walk(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return walk(ast.parse(path.read_text(encoding="utf8")), late=False)


def all_imports() -> list[tuple[str, str, bool]]:
    return [(room, target, late) for room, path in sources() for target, late in imports(path)]


def test_every_module_has_a_layer():
    rooms = {room for room, _ in sources()}
    assert rooms == set(LAYERS)
    assert len(rooms) > 10


def test_layers_import_only_downward():
    upward = {
        (room, target)
        for room, target, late in all_imports()
        if target in LAYERS
        and target != room
        and LAYERS[target] > LAYERS[room]
        and not (late and (room, target) in LATE)
    }
    assert not upward


def test_libraries_are_imported_only_where_the_layer_allows():
    foreign = set()
    for room, target, late in all_imports():
        if target in LAYERS or target in sys.stdlib_module_names:
            continue
        allowed = target in THIRD_PARTY[LAYERS[room]]
        listed = late and ((room, target) in LATE or LAYERS[room] >= 3)
        if not (allowed or listed):
            foreign.add((room, target))
    assert not foreign


def test_no_late_import_is_listed_in_vain():
    late = {(room, target) for room, target, is_late in all_imports() if is_late}
    assert set(LATE) <= late


@pytest.mark.parametrize(
    ("library", "room"),
    [
        ("trl", {"training", "trainers", "cli"}),
        ("huggingface_hub", {"hub"}),
        ("peft", {"training", "adapters", "adalora", "starts", "lora_layers"}),
    ],
)
def test_each_library_has_one_seam(library: str, room: set[str]):
    assert {where for where, target, _ in all_imports() if target == library} <= room


def test_modules_stay_small():
    lengths = {path.name: len(path.read_text(encoding="utf8").splitlines()) for _, path in sources()}
    assert max(lengths.values()) <= 400, lengths
