"""The house rules of DESIGN: layers import only downward; what is imported late is listed with its reason."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_lora_ext

PACKAGE = Path(hf_lora_ext.__file__).parent
SHIPPED = {"recipes", "model_cards"}
"""Folders that a wheel has inside the package and the repository beside it: scripts and texts, no modules."""

LAYERS = {
    0: {
        "": "errors decisions hardware resources strict_yaml",
        "models": "sizes blocks decoders older_families families popular_models attention targets",
        "choices": "methods wishes adapter run advice overfitting",
        "memory": "plans habits anatomy activations states peaks fitting preset_plans remedies host_memory measured",
        "presets": "configuration preset explanation arguments launch",
        "cards": "facts fact_keys plain_values comparisons card metadata view usage ownership markdown licences "
        "layer_ranks emissions",
        "runs": "recipe recipe_rules declared evaluate_choice push_choice trainer_kinds trainer_rules rewards emission "
        "trackers",
        "data": "forms",
        "ranks": "events allocation",
        "adapters": "adalora_schedule tensor_names patterns wrapped_parameters factor_shapes",
        "hub": "landing",
        "analysis": "spectra report knee budgets",
        "push": "leaks release release_terms release_card plan schedule token_scopes",
        "sweep": "space settings outcome",
        "export": "forms engine_rules",
        "evaluation": "bootstrap scores",
        "metrics": "definitions",
    },
    1: {"adapters": "orthogonality", "ranks": "low_rank optimizer_state growth", "analysis": "edges"},
    2: {
        "adapters": "peft_seam stored_adapter factors adalora starts attached unloaded",
        "ranks": "lora_layers probes criteria change storage sketches moves",
        "export": "reshaping engines",
        "analysis": "truncation",
    },
    3: {
        "": "machine new_folder plots",
        "models": "base_models shape_sources stored_weights",
        "hub": "__init__ failures repository",
        "adapters": "located",
        "data": "examples files labels stdlib_docstrings tokens",
        "push": "base_terms access",
        "runs": "checkpoint_files launching processes recipe_plan run_folder sharded shipped",
        "analysis": "rank_report pictures passes",
        "sweep": "holds store",
        "export": "base weight_changes merging comparison",
        "evaluation": "answers classes pictures",
        "metrics": "__init__ accuracy exact_match f1 rouge",
    },
    4: {
        "": "trainers",
        "callbacks": "*",
        "runs": "dry_run training building publishing runner full resuming",
        "analysis": "curve subject measure compress",
        "push": "gathering preflight verification push rollbacks queue",
        "sweep": "forecast report sweeper",
        "export": "export",
        "evaluation": "measuring comparing evaluation harness",
    },
    5: {"": "__init__", "cli": "*"},
}
"""Layer → room → its modules. A room that has a face (`from .. import hub`) names its `__init__`."""
THIRD_PARTY = {
    0: set(),
    1: {"torch"},
    2: {"torch", "peft", "safetensors"},
    3: {
        *{"torch", "peft", "safetensors", "huggingface_hub", "matplotlib", "transformers", "datasets"},
        *{"evaluate", "rouge_score"},
    },
    4: {"torch", "peft", "safetensors", "huggingface_hub", "matplotlib", "transformers", "datasets", "trl"},
    5: {"click"},
}
# (module, what it imports inside a function) → why the rule is bent there. Layers 3 to 5 import libraries late
# so that a preset or a help text stays instant; that needs no entry, but importing *upward* always does.
LATE = {
    ("analysis.report", "analysis.pictures"): "RankReport draws itself on demand",
    ("presets.configuration", "runs.training"): "Preset's properties build library objects on demand",
    ("presets.preset", "models.base_models"): "preset() gathers before it decides",
    ("presets.preset", "machine"): "preset() gathers before it decides",
    ("strict_yaml", "yaml"): "0.03 s that a preset does not need",
    ("cards.card", "jinja2"): "0.06 s that only rendering needs",
}


def sources() -> list[tuple[str, Path]]:
    """Every module of the package with its name; a room's own text is its `__init__`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in SHIPPED:
            found.append((".".join(parts), path))
    return found


MODULES = {name for name, _ in sources()}


def layer(module: str) -> int | None:
    """Return a module's layer; None where the table above forgets it."""
    room, _, name = module.rpartition(".")
    listed = ((number, rooms.get(room, "").split()) for number, rooms in LAYERS.items())
    return next((number for number, names in listed if name in names or names == ["*"]), None)


def room(module: str) -> str:
    return module.rpartition(".")[0] or module


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (imported module or library, whether late) for each import that runs."""
    here = path.relative_to(PACKAGE).parts

    def named(node: ast.ImportFrom) -> list[str]:
        library, _, own = (node.module or "").partition(".")
        if node.level == 0 and library != PACKAGE.name:
            return [library]
        base = own if node.level == 0 else ".".join([*here[: len(here) - node.level], *(node.module or "").split(".")])
        base = base.strip(".")
        inside = [f"{base}.{alias.name}".removeprefix(".") for alias in node.names]
        whole = base if base in MODULES else f"{base}.__init__".removeprefix(".")
        return [
            name if name in MODULES else f"{name}.__init__" if f"{name}.__init__" in MODULES else whole
            for name in inside
        ]

    def walk(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name.partition(".")[0], late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from ((name, late) for name in named(child))
            else:
                yield from walk(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return walk(ast.parse(path.read_text(encoding="utf8")), late=False)


def all_imports() -> list[tuple[str, str, bool]]:
    return [(module, target, late) for module, path in sources() for target, late in imports(path)]


def test_every_module_has_a_layer():
    silent = {name for name, path in sources() if len(ast.parse(path.read_text(encoding="utf8")).body) == 1}
    listed = {
        f"{place}.{name}".removeprefix(".")
        for rooms in LAYERS.values()
        for place, names in rooms.items()
        for name in names.split()
        if name != "*"
    }
    assert {name for name in MODULES - silent if layer(name) is None} == set()
    assert listed <= MODULES
    assert len(MODULES) > 50


def test_layers_import_only_downward():
    upward = {
        (module, target)
        for module, target, late in all_imports()
        if target in MODULES and layer(target) > layer(module) and not (late and (module, target) in LATE)
    }
    assert not upward


def _circle(stands_on: dict[str, set[str]]) -> list[str]:
    """Return the rooms of a circle, if there is one."""
    try:
        TopologicalSorter(stands_on).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_rooms_do_not_import_each_other_in_a_circle():
    """A room can be read, and moved, once the rooms that it stands on are known."""
    stands_on: dict[str, set[str]] = {}
    for module, target, late in all_imports():
        if target in MODULES and not late and room(module) != room(target):
            stands_on.setdefault(room(module), set()).add(room(target))
    assert _circle(stands_on) == []


def test_a_circle_is_found():
    assert set(_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_libraries_are_imported_only_where_the_layer_allows():
    foreign = set()
    for module, target, late in all_imports():
        if target in MODULES or target in sys.stdlib_module_names:
            continue
        allowed = target in THIRD_PARTY[layer(module) or 0]
        listed = late and ((module, target) in LATE or (layer(module) or 0) >= 3)
        if not (allowed or listed):
            foreign.add((module, target))
    assert not foreign


def test_no_late_import_is_listed_in_vain():
    late = {(module, target) for module, target, is_late in all_imports() if is_late}
    assert set(LATE) <= late


@pytest.mark.parametrize(
    ("library", "seam"),
    [
        ("trl", {"runs.training", "trainers", "cli"}),
        ("huggingface_hub", {"hub"}),
        ("optuna", {"sweep.store"}),
        ("evaluate", {"metrics"}),
        ("rouge_score", {"metrics"}),
        ("lm_eval", {"evaluation.harness"}),
        ("peft", {"runs.training", "runs.building", "adapters", "ranks.lora_layers"}),
    ],
)
def test_each_library_has_one_seam(library: str, seam: set[str]):
    importing = {module for module, target, _ in all_imports() if target == library}
    assert {module for module in importing if not {module, room(module)} & seam} == set()


def test_modules_stay_small():
    lengths = {name: len(path.read_text(encoding="utf8").splitlines()) for name, path in sources()}
    assert max(lengths.values()) <= 400, lengths
