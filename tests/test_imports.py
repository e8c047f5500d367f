"""The import budget, and that what the package exports, lists and documents is one set of names."""

import ast
import re
from pathlib import Path

import pytest
from conftest import run_python

import hf_lora_ext

HEAVY = ("torch", "numpy", "transformers", "peft", "trl", "datasets", "huggingface_hub", "matplotlib", "yaml", "jinja2")
LOADED = f"import sys; print([m for m in {HEAVY!r} if m in sys.modules])"


@pytest.mark.parametrize(
    "statement",
    [
        "import hf_lora_ext",
        "from hf_lora_ext import preset; preset('7B')",
        "from hf_lora_ext import preset; preset('13B', method='qlora', gpu_memory_gib=24).explain()",
        "from hf_lora_ext import preset; preset({'model_type': 'llama', 'hidden_size': 64, 'num_hidden_layers': 2, "
        "'vocab_size': 100, 'num_attention_heads': 4, 'intermediate_size': 128}).to_dict()",
        "import sys; from hf_lora_ext.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement: str):
    result = run_python("-c", f"{statement}\n{LOADED}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_local_folder_needs_nothing_heavy(tiny_model: Path):
    result = run_python("-c", f"from hf_lora_ext import preset; preset({str(tiny_model)!r})\n{LOADED}")
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_every_exported_name_exists():
    assert hf_lora_ext.__all__ == sorted(hf_lora_ext.__all__)
    assert [name for name in hf_lora_ext.__all__ if getattr(hf_lora_ext, name, None) is None] == []
    assert dir(hf_lora_ext) == hf_lora_ext.__all__


def test_lazy_names_are_those_declared_for_type_checkers():
    tree = ast.parse(Path(hf_lora_ext.__file__).read_text(encoding="utf8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert declared == hf_lora_ext._LAZY
    assert set(declared) <= set(hf_lora_ext.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hf_lora_ext.nonsense


def test_the_readme_imports_only_exported_names():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf8")
    lists = re.findall(r"from hf_lora_ext import ([\w, ]+)", readme)
    named = {name.strip() for names in lists for name in names.split(",")}
    assert named
    assert named <= set(hf_lora_ext.__all__)
