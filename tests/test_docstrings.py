"""The examples in docstrings give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import hf_lora_ext

PACKAGE = Path(hf_lora_ext.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("hf_lora_ext", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf8")
)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")  # of trl's own defaults
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(name: str):
    assert not doctest.testmod(import_module(name)).failed


def test_there_are_examples():
    assert len(WITH_EXAMPLES) > 10
