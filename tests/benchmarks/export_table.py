"""Print which inference engine loads which form of an adapter with a rank for each layer, by the engines' own rules.

    python tests/benchmarks/export_table.py

A small random Llama gets an adapter of ranks 0 to 7 and its exports; PEFT loads them, the rules are those that
`check_engine` reads off the engines' sources, which are not run.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent))
from exported_adapters import mixed_adapter

from hf_lora_ext import check_engine, export_adapter
from hf_lora_ext.export.engine_rules import ENGINES

LAYERS = 3


def main() -> None:
    """Print the table, and below it why a form is rejected."""
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_hidden_layers=LAYERS, **sizes))
        model.save_pretrained(folder / "base")
        forms = {"as saved": mixed_adapter(folder / "saved", folder / "base")}
        differences = ["the reference"]
        for form in ("compact", "portable"):
            done = export_adapter(forms["as saved"], form, folder / form)
            forms[form] = Path(done.folder)
            differences.append(f"{done.largest_difference:.1g} of {done.largest_answer:.2g}")
        print("| engine | read | " + " | ".join(forms) + " |")
        print("|---" * (2 + len(forms)) + "|")
        print("| PEFT | run: largest difference of an answer | " + " | ".join(differences) + " |")
        reasons = []
        for name, engine in ENGINES.items():
            found = {form: check_engine(path, name, base_layers=LAYERS) for form, path in forms.items()}
            words = ("rejected" if problems else "accepted" for problems in found.values())
            print(f"| {engine.name} | {engine.version} | " + " | ".join(words) + " |")
            reasons += [f"{engine.name}, {form}: {problem}" for form, all_ in found.items() for problem in all_]
    print("\n" + "\n".join(reasons))


if __name__ == "__main__":
    main()
