"""Run llama.cpp on exported adapters, and compare its answers with PEFT's.

    python tests/benchmarks/export_llama_cpp.py MODEL LLAMA_CPP

MODEL is the folder of a model that llama.cpp knows, with its tokenizer; LLAMA_CPP a checkout of llama.cpp, for its
converters (the source package of llama-cpp-python on PyPI has one in vendor/). It needs `pip install xllamacpp
sentencepiece`, whose wheel brings llama.cpp itself. An adapter of random mixed ranks is saved as PEFT saves it and
exported; each is converted, and the log-probabilities of all next tokens are compared at several places of a text.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))
from exported_adapters import mixed_adapter

from hf_lora_ext import check_engine, export_adapter

TOKENS = [1, 504, 253, 1075, 28, 338, 260, 5000]
PLACES = (3, 5, 8)
"""Lengths of the text after which the next token is asked for."""


def by_peft(base: Path, adapter: Path | None) -> torch.Tensor:
    """Return the log-probabilities `(places, tokens)` that transformers and PEFT compute in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    with torch.no_grad():
        logits = model.eval()(torch.tensor([TOKENS])).logits[0]
    return logits[[place - 1 for place in PLACES]].double().log_softmax(-1)


def by_llama_cpp(base: Path, adapter: Path | None, vocabulary: int) -> torch.Tensor:
    """Return the same of llama.cpp, with its cache in float32 and without flash attention."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(base), 64, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    rows = torch.full((len(PLACES), vocabulary), torch.nan, dtype=torch.float64)
    for row, place in zip(rows, PLACES, strict=True):
        asked = {"prompt": TOKENS[:place], "n_predict": 1, "n_probs": vocabulary, "temperature": 0}
        answer = server.handle_completions(asked | {"cache_prompt": False})
        for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[token["id"]] = token["logprob"]
    return rows


def convert(script: Path, source: Path, *options: object) -> Path:
    """Run one of llama.cpp's converters; return the file that it wrote."""
    file = source.parent / f"{source.name}.gguf"
    command = [sys.executable, script, source, "--outfile", file, "--outtype", "f32", *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{script.name} refused {source.name}: {done.stderr.strip().splitlines()[-1]}")
    return file


def main() -> None:
    """Print one line for each form."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("llama_cpp", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "base").symlink_to(given.model.resolve())
        base = convert(given.llama_cpp / "convert_hf_to_gguf.py", folder / "base")
        saved = mixed_adapter(folder / "as saved", given.model, spread=0.03)
        forms = {"as saved": saved}
        for form in ("compact", "portable"):
            forms[form] = Path(export_adapter(saved, form, folder / form, check=False).folder)
        plain, trained = by_peft(given.model, None), by_peft(given.model, saved)
        vocabulary = plain.shape[1]
        print(f"largest difference of a log-probability, of {len(PLACES)} x {vocabulary}")
        print(f"no adapter: {(by_llama_cpp(base, None, vocabulary) - plain).abs().max():.2g} from transformers")
        print(f"the adapter changes one by up to {(trained - plain).abs().max():.2g}")
        for form, adapter in forms.items():
            file = convert(given.llama_cpp / "convert_lora_to_gguf.py", adapter, "--base", given.model)
            difference = (by_llama_cpp(base, file, vocabulary) - trained).abs().max()
            said = "accepted" if not check_engine(adapter, "llama.cpp") else "rejected"
            print(f"{form:<9} {difference:.2g} from PEFT; our rules: {said}")


if __name__ == "__main__":
    main()
