"""AdaLoRA without and with AdaLoraCallback on a small random Llama: the table of hf_lora_ext/callbacks/adalora.md.

    python tests/benchmarks/adalora_before_after.py

About 40 s of one core. "Without" calls PEFT's allocator as its documentation says (or not at all, first row).
"""

import logging
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from hf_lora_ext import AdaLoraCallback
from hf_lora_ext.adapters.adalora import layer_ranks
from hf_lora_ext.adapters.orthogonality import orthogonality_gradients

INIT_R, TARGET_R, STEPS = 6, 3, 12


class AsPeftDocuments(TrainerCallback):
    """PEFT's allocator, called after each optimizer step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        config = model.peft_config["default"]
        config.total_step, config.tinit, config.tfinal = state.max_steps, 2, 4

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


class Watch(TrainerCallback):
    """The first step's gradient of A and B, where E is 0 and the task gives them none; and each step's time."""

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()
        if state.global_step == 0:
            self.seconds: list[float] = []
            p = {n: p for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n}
            whole = orthogonality_gradients([x.detach() if "lora_A" in n else x.detach().T for n, x in p.items()])
            self.expected = 0.5 * norm(whole)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            grads = [p.grad for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
            self.times_in = norm([g for g in grads if g is not None]) / self.expected

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors]).norm()) if tensors else 0.0


def make_base(folder: Path) -> None:
    words = {"<pad>": 0, "<eos>": 1} | {str(n): n + 2 for n in range(60)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=62, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)


def base_in(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder)


def adapted(base: Path, plain_lora: bool = False) -> Any:
    torch.manual_seed(0)
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "lora_alpha": 16}
    config = LoraConfig(r=INIT_R, **common)
    if not plain_lora:
        config = AdaLoraConfig(init_r=INIT_R, target_r=TARGET_R, total_step=1, **common)
    return get_peft_model(base_in(base), config)


def build(kind: str, base: Path, model: Any, out: Path, callbacks: list[Any], accumulation: int = 1) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 5e-3,
        "gradient_accumulation_steps": accumulation, "max_grad_norm": 0.0, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "save_steps": STEPS // 2, "logging_strategy": "no",
    }  # fmt: skip
    rows = [" ".join(str((start + step * k) % 60) for k in range(24)) for start in range(20) for step in range(1, 11)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    if kind == "SFTTrainer":
        args = SFTConfig(bf16=False, gradient_checkpointing=False, **settings)
        data = Dataset.from_list([{"text": row} for row in rows])
        return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
    ids = [tokenizer(row).input_ids for row in rows]
    data = Dataset.from_list([{"input_ids": i, "labels": i} for i in ids])
    return Trainer(model=model, args=TrainingArguments(**settings), train_dataset=data, callbacks=callbacks)


def ours() -> list[Any]:
    return [AdaLoraCallback(tinit=2, tfinal=4)]


def theirs() -> list[Any]:
    return [AsPeftDocuments()]


def total(model: Any) -> str:
    return str(sum(layer_ranks(model.base_model).values()))


def regulariser(base: Path, out: Path, kind: str, accumulation: int, callbacks: list[Any]) -> str:
    watch = Watch()
    build(kind, base, adapted(base), out, [*callbacks, watch], accumulation).train()
    return f"{watch.times_in:.2f} x"


def resumed(base: Path, out: Path, make: Any) -> str:
    straight = build("SFTTrainer", base, adapted(base), out / "straight", make())
    straight.train()
    checkpoint = out / "resumed" / f"checkpoint-{STEPS // 2}"
    shutil.copytree(out / "straight" / checkpoint.name, checkpoint)
    other = build("SFTTrainer", base, adapted(base), out / "resumed", make())
    try:
        other.train(resume_from_checkpoint=str(checkpoint))
    except RuntimeError as error:
        return "RuntimeError: size mismatch" if "size mismatch" in str(error) else repr(error)
    pairs = zip(straight.model.parameters(), other.model.parameters(), strict=True)
    return f"largest difference {max(float((a - b).abs().max()) for a, b in pairs):.1e}"


def trained_again(base: Path, saved: Path, out: Path, callbacks: list[Any]) -> str:
    model = PeftModel.from_pretrained(base_in(base), saved, is_trainable=True)
    before = total(model)
    build("SFTTrainer", base, model, out, callbacks).train()
    return f"{before} → {total(model)}"


def saved_kind(base: Path, out: Path, callbacks: list[Any]) -> str:
    trainer = build("SFTTrainer", base, adapted(base), out, callbacks)
    trainer.train()
    trainer.save_model(str(out / "adapter"))
    again = PeftModel.from_pretrained(base_in(base), out / "adapter")
    tokens = torch.arange(2, 42)[None]
    with torch.no_grad():
        gap = (again.eval()(tokens).logits - trainer.model.eval()(tokens).logits).abs().max()
    return f"{again.peft_config['default'].peft_type.value}, logits off by {float(gap):.0e}"


def milliseconds(base: Path, out: Path, plain_lora: bool, callbacks: list[Any]) -> str:
    watch = Watch()
    build("SFTTrainer", base, adapted(base, plain_lora), out, [*callbacks, watch]).train()
    return f"{1000 * statistics.median(watch.seconds):.0f} ms"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        base, out = Path(folder) / "base", Path(folder) / "out"
        make_base(base)
        cut = build("SFTTrainer", base, adapted(base), out / "cut", theirs())
        cut.train()
        cut.model.save_pretrained(out / "cut" / "adapter")
        silent = build("SFTTrainer", base, adapted(base), out / "silent", [])
        silent.train()
        allocated = build("SFTTrainer", base, adapted(base), out / "allocated", ours())
        allocated.train()
        layers = len(layer_ranks(allocated.model.base_model))
        rows = [
            (f"sum of ranks after training (budget {TARGET_R * layers})", total(silent.model), total(allocated.model))
        ]
        for kind in ("SFTTrainer", "Trainer"):
            for accumulation in (1, 4):
                name = f"regulariser's gradient in one step, {kind}, accumulation {accumulation}"
                found = [regulariser(base, out / "r", kind, accumulation, c) for c in ([], ours())]
                rows.append((name, *found))
        rows.append(("resumed against uninterrupted", *(resumed(base, out / m.__name__, m) for m in (theirs, ours))))
        name = "sum of ranks, adapter saved by PEFT and trained again"
        rows.append((name, *(trained_again(base, out / "cut" / "adapter", out / "a", m()) for m in (theirs, ours))))
        rows.append(("`save_model` writes", *(saved_kind(base, out / f"s{m.__name__}", m()) for m in (theirs, ours))))
        rows.append(("median step", *(milliseconds(base, out / "t", False, m()) for m in (theirs, ours))))
        rows.append((f"median step of plain LoRA, rank {INIT_R}", milliseconds(base, out / "t", True, []), "the same"))
    print("| | without | with |\n|---|---:|---:|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
