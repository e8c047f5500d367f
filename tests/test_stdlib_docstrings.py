"""The built-in data: every documented function once, its own docstring out of the prompt, in a fixed order."""

import ast
import sysconfig

import pytest

from hf_lora_ext.data.stdlib_docstrings import (
    PACKAGES,
    docstring_examples,
    examples_in_source,
    package_examples,
    preference_examples,
)

SOURCE = '''
def one(a):
    """Return a."""
    return a

async def two():
    """
    Wait.

    More words.
    """
    await x

class Three:
    """A class."""

    def method(self):
        """Do it."""
        def inner():
            """Help."""
            return 1
        return inner

def long():
    """A summary
    over two lines."""
    return 1

def only_docstring():
    """Nothing else."""

def blank():
    """  """
    return 1

def bare():
    return 1
'''


def found(source=SOURCE):
    return list(examples_in_source(source, "m"))


def test_each_function_with_a_one_line_summary_and_a_body_is_an_example():
    completions = {example["completion"] for example in found()}
    assert completions == {"Return a.", "Wait.", "Do it.", "Help."}


def test_an_example_holds_the_code_and_asks_for_the_function_by_name():
    example = found()[0]
    assert set(example) == {"module", "prompt", "completion"}
    assert example["module"] == "m"
    assert example["prompt"].startswith("def one(a):\n    return a\n")
    assert example["prompt"].rstrip().endswith("one do?")


def test_no_prompt_holds_its_own_answer():
    for example in found():
        assert example["completion"] not in example["prompt"]


def test_source_that_does_not_parse_is_a_syntax_error():
    with pytest.raises(SyntaxError):
        found("def broken(:")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small standard library."""
    code = 'def f():\n    """{}."""\n    return 1\n'
    files = ["b.py", "a.py", "pkg/__init__.py", "pkg/test.py", "test/t.py", "pkg/tests/t.py", "site-packages/s.py",
             "idlelib/i.py"]  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code.format(name))
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "broken.py").write_text("def broken(:")
    (tmp_path / "zero.py").write_bytes(b"x = 1\0")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


def test_modules_come_in_order_without_tests_and_bundled_packages(library):
    assert [example["module"] for example in docstring_examples()] == ["a", "b", "pkg.__init__", "pkg.test"]


def test_reading_again_gives_the_same_examples(library):
    assert list(docstring_examples()) == list(docstring_examples())


def test_the_real_library_gives_code_that_parses():
    examples = [example for _, example in zip(range(200), docstring_examples(), strict=False)]
    assert len(examples) == 200
    assert len({example["module"] for example in examples}) > 3
    for example in examples:
        code, blank, question = example["prompt"].rstrip().rpartition("\n\n")
        ast.parse(code)
        assert blank
        assert question
        assert "\n" not in example["completion"]


def test_what_is_rejected_is_another_function_s_docstring_from_the_same_module():
    own: dict[str, set[str]] = {}
    for example in docstring_examples():
        own.setdefault(example["module"], set()).add(example["completion"])
    pairs = list(preference_examples())
    assert len(pairs) > 3000
    for pair in pairs:
        assert {pair["chosen"], pair["rejected"]} <= own[pair["module"]]
        assert pair["chosen"] != pair["rejected"]


def test_a_line_is_labelled_with_a_package_that_has_it_and_comes_once():
    lines = list(package_examples())
    said = {(example["completion"], example["module"].partition(".")[0]) for example in docstring_examples()}
    assert {(line["text"], line["label"]) for line in lines} <= said
    assert len({line["text"] for line in lines}) == len(lines)
    assert {line["label"] for line in lines} == set(PACKAGES)
