"""Fixtures: a tiny model with a tokenizer, small data files, and caches that belong to the test run."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from git_hub_state import Hub

# Workers share the cores; these must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Hypothesis fails an example that takes 200 ms, and data that is slow to draw. On cores that others use too, both
# measure the others: an example that does not get the processor for so long fails, whatever it tests.
settings.register_profile("shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")

PAIRS = [{"prompt": f"What is {n} plus one?\n", "completion": f"It is {n + 1}."} for n in range(40)]


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_looked_over() -> None:
    """Take what is imported by now out of the garbage collector's sight.

    Each `Trainer.train()` collects; over the half million objects of imported libraries that took as long as a run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _templates_are_compiled_once() -> Iterator[None]:
    """Remember what Jinja compiles: peft compiles the template of its card for every adapter that it saves."""
    from jinja2 import Environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", lru_cache(maxsize=32)(Environment.compile))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (about 50,000 parameters), its tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    specials = ["<pad>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(specials + alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama whose logits are wide enough to fit an answer with a frozen head."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "wide-llama"
    config = AutoConfig.from_pretrained(
        tiny_model, hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.1
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 of two layers each way, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("models") / "tiny-t5"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2, num_decoder_layers=2,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random LoRA of the tiny model, as peft saves it."""
    from push_runs import saved_adapter

    return saved_adapter(tmp_path_factory.mktemp("adapters") / "lora", tiny_model)


@pytest.fixture
def adapter(saved_lora: Path, tmp_path: Path) -> Path:
    """A copy of `saved_lora` that a test may change."""
    return shutil.copytree(saved_lora, tmp_path / "adapter")


@pytest.fixture
def git_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A Hub on loopback that takes pushes; `git_hub_access` has its tokens, `git_hub.faults` makes it go wrong.

    What a push that fails keeps beside the Hub's cache is kept in the test's own folder.
    """
    if shutil.which("git") is None:
        pytest.skip("the Hub stand-in keeps its repositories with git, and there is no git on the PATH")
    from git_hub import git_hub_on_loopback

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf_home"))
    with git_hub_on_loopback(tmp_path / "git_hub") as hub:
        yield hub


@pytest.fixture(params=["xet", "lfs"])
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send large files by Xet, and once more by LFS with Xet turned off; return which."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path


def write_tiny_recipe(folder: Path, model: Path) -> Path:
    """Write a recipe that trains the tiny model for six steps in a second or two, and its forty examples."""
    data = write_jsonl(folder / "pairs.jsonl", PAIRS)
    file = folder / "tiny.yaml"
    file.write_text(
        f"""
model: {model}
output_dir: {folder / "run"}
data: {{source: {data}}}
training:
  max_steps: 6
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 1
  learning_rate: 1e-2
  logging_steps: 1
  eval_steps: 3
  save_steps: 2
""",
        encoding="utf8",
    )
    return file


@pytest.fixture
def tiny_recipe(tiny_model: Path, tmp_path: Path) -> Path:
    """A recipe that a test may change."""
    return write_tiny_recipe(tmp_path, tiny_model)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter with the test run's caches."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def hf_lora(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process."""
    return run_python("-m", "hf_lora_ext.cli", *map(str, arguments), **environment)


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code, output and errors."""
    from hf_lora_ext.cli import main

    code = 0
    try:
        main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err
