"""Three cards of one adapter, side by side: ours, PEFT's and TRL's, each written by the library's own code.

    python tests/benchmarks/cards.py

A tiny random Llama is trained for a few steps, once loaded from a local folder and once under a Hub id (with the
commit that `from_pretrained` notes in the config). No network is used, so that nobody can ask the Hub for a licence.
What counts as wrong is listed in `FAULTS`.
"""

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
ROWS = [{"prompt": f"What is {n} plus one?\n", "completion": f"It is {n + 1}."} for n in range(24)]
FIELDS = (
    *("library_name", "pipeline_tag", "base_model", "base_model_relation", "tags", "datasets", "language"),
    *("model-index", "license"),
)
TOLD: dict[str, str] = {
    "code to paste": r"PeftModel\.from_pretrained|pipeline\(",
    "base revision": COMMIT,
    "rank": r"[Rr]ank[^\n]*\b4\b",
    "targets": r"q_proj",
    "learning rate": r"learning_rate[^\n]*0\.01",
    "number of examples": r"\b20\b",
    "data fingerprint": r"\b[0-9a-f]{64}\b",
    "held-out loss, base and adapter": r"\| loss \| [\d.]+ \| [\d.]+ \|",
    "time and memory": r"GiB",
    "version of peft": r"(?i)peft:? \d",
    "version of trl": r"(?i)trl:? \d",
}
"""What a reader may look for → how it is found in the card's body."""
FAULTS: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "base_model is a path": lambda data, body: "/" in str(data.get("base_model", ""))[:1],
    "`licence`, which is no key of the Hub": lambda data, body: "licence" in data,
    "library_name is not peft": lambda data, body: data.get("library_name") != "peft",
    "a link to None": lambda data, body: "huggingface.co/None" in body,
    "loads an adapter that was never published": lambda data, body: 'model="None"' in body,
}


def small_base(folder: Path) -> Path:
    """Save a random Llama with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1)  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, hub_id: str | None) -> Any:
    """Return a trainer whose adapter trained a few steps, with our facts in its folder."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from hf_lora_ext import FactsCallback

    model = AutoModelForCausalLM.from_pretrained(base)
    if hub_id:
        model.name_or_path = model.config._name_or_path = hub_id
        model.config._commit_hash = COMMIT
    train, held_out = Dataset.from_list(ROWS[:20]), Dataset.from_list(ROWS[20:])
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder), max_steps=4, learning_rate=0.01, per_device_train_batch_size=2, report_to="none",
            eval_strategy="steps", eval_steps=4, eval_on_start=True, save_strategy="no", use_cpu=True,
            disable_tqdm=True, logging_steps=2,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
        callbacks=[FactsCallback(train, held_out, name="my-data")],
    )  # fmt: skip
    trainer.train()
    return trainer


def written_cards(trainer: Any, folder: Path) -> dict[str, str]:
    """Return each library's card of the trainer's adapter."""
    from hf_lora_ext import write_card

    ours = write_card(folder, language="en").read_text(encoding="utf8")
    peft, trl = folder / "peft", folder / "trl"
    trainer.model.save_pretrained(peft)
    trl.mkdir()
    trainer.args.output_dir = str(trl)
    trainer.create_model_card()
    return {"ours": ours} | {
        name: (place / "README.md").read_text(encoding="utf8") for name, place in (("peft", peft), ("trl", trl))
    }


def judged(card: str, private: list[str]) -> dict[str, Any]:
    """Return what a card has, lacks and gets wrong."""
    block, body = re.match(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    data = yaml.safe_load(block) or {}
    return {
        "fields": [name for name in FIELDS if name in data],
        "told": [name for name, pattern in TOLD.items() if re.search(pattern, body)],
        "placeholders": body.count("More Information Needed") + len(re.findall(r"\[None\]|\bNone\b", block)),
        "faults": [name for name, is_so in FAULTS.items() if is_so(data, body)],
        "leaked": sum(card.count(path) for path in private),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a Markdown table, a column a library."""
    names = list(results)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title, key, whole in (("metadata", "fields", FIELDS), ("told", "told", TOLD)):
        lines += [
            f"| {title}: {item} | {' | '.join('yes' if item in results[n][key] else '–' for n in names)} |"
            for item in whole
        ]
    lines += [
        f"| wrong: {item} | {' | '.join('yes' if item in results[n]['faults'] else '–' for n in names)} |"
        for item in FAULTS
    ]
    lines += [f"| {key} | {' | '.join(str(results[n][key]) for n in names)} |" for key in ("placeholders", "leaked")]
    return "\n".join(lines)


def compared(folder: Path, hub_id: str | None) -> dict[str, dict[str, Any]]:
    """Return each library's card of one adapter, judged."""
    base = small_base(folder / "secret-place" / "base")
    trainer = trained(base, folder / "out", hub_id)
    private = [str(folder), str(Path.home()) + "/"]
    return {name: judged(card, private) for name, card in written_cards(trainer, folder / "out").items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and warnings off the screen."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Print a table for a local base, and one for a base on the Hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which is later
    for title, hub_id in (("A local folder as the base", None), (f"{HUB_ID} as the base", HUB_ID)):
        with tempfile.TemporaryDirectory() as folder, quiet():
            results = compared(Path(folder), hub_id)
        print(f"\n{title}\n\n{table(results)}")


if __name__ == "__main__":
    main()
