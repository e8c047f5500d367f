"""What the README shows runs as pasted, on a small local model in place of the 7B."""

import re
from pathlib import Path

import pytest
from conftest import PAIRS, write_jsonl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
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


def test_every_module_is_in_the_file_tree_and_every_line_of_the_tree_exists():
    tree = re.search(r"```text\n(hf_lora_ext/.*?)```", README, flags=re.DOTALL).group(1)
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    import hf_lora_ext

    package = Path(hf_lora_ext.__file__).parent
    rooms = {p.name for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())}
    assert named == rooms - {"__init__.py"}
