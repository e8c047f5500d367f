"""What the README shows runs as pasted, on a small local model in place of the 7B."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import PAIRS, outcome, write_jsonl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "hf_lora_ext").rglob("*.md"))]
in_a_checkout = pytest.mark.skipif(
    not (ROOT / "hf_lora_ext").is_dir(), reason="beside a wheel there is README.md alone"
)
SEVEN_BILLION = "meta-llama/Llama-2-7b-hf"


def test_the_readme_has_code_and_its_model_is_the_one_replaced_here():
    assert any(SEVEN_BILLION in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_a_python_block_runs_as_pasted(block: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "examples.jsonl", PAIRS)
    exec(compile(block.replace(SEVEN_BILLION, str(tiny_model)), "README.md", "exec"), {})
    if "trainer.train()" in block:
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
        assert "More Information Needed" not in (tmp_path / "out" / "README.md").read_text(encoding="utf8")


@pytest.mark.slow
def test_its_commands_run_one_after_the_other(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A newcomer's first hour, on a small model and three steps; the push is looked at without a token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    write_jsonl(tmp_path / "mine.jsonl", PAIRS)
    commands = [line.partition(" # ")[0] for line in re.findall(r"^hf-lora (.*)$", README, flags=re.MULTILINE)]
    assert [command.split()[0] for command in commands][-1] == "push"
    for command in commands:
        small = [f"model={tiny_model}", "training.max_steps=3"] if command.startswith("train") else []
        code, out, err = outcome(capsys, *shlex.split(command), *small)
        assert code == 0, f"{command}: {err}"
        if command.startswith("push"):
            assert "not checked, because no token was found; log in with `hf auth login`" in out
            assert "adapter_model.safetensors" in out


def test_every_module_is_in_the_file_tree_and_every_line_of_the_tree_exists():
    tree = re.search(r"```text\n(hf_lora_ext/.*?)```", README, flags=re.DOTALL).group(1)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    import hf_lora_ext

    package = Path(hf_lora_ext.__file__).parent
    rooms = {p.name for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())}
    assert named == rooms - {"__init__.py"}


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@in_a_checkout
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_or_heading_leads_there(page: Path):
    text = page.read_text(encoding="utf8")
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text)
    for target in (link or image for link, image in links):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), target
            assert not anchor or anchor in _anchors(file), target


def test_every_reference_of_the_readme_is_defined_and_every_definition_used():
    used = set(re.findall(r"\]\[(\w+)\]", README))
    assert used == set(re.findall(r"^\[(\w+)\]: https://", README, flags=re.MULTILINE))
    assert len(used) > 10


@in_a_checkout
def test_every_method_card_is_reached_from_the_readme():
    cards = {page.relative_to(ROOT).as_posix() for page in PAGES if page.parent != ROOT}
    assert cards == {link for link in re.findall(r"\]\((hf_lora_ext/[^)#]+\.md)", README)}


@in_a_checkout
def test_every_public_name_that_a_reader_calls_is_in_the_readme_or_a_method_card():
    import hf_lora_ext

    text = "".join(page.read_text(encoding="utf8") for page in PAGES)
    called = {
        name for name in hf_lora_ext.__all__ if name[0].islower() or name.endswith(("Callback", "Trainer", "Mixin"))
    }
    assert {name for name in called if not re.search(rf"\b{name}\b", text)} == set()


@in_a_checkout
def test_the_citation_names_the_version_of_the_package():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf8")
    assert f"\nversion: {version}\n" in citation
    assert f"version = {{{version}}}" in README
