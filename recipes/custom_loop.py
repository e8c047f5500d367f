"""Train a preset's adapter in a PyTorch loop of one's own: no Trainer, no runner, an ordinary PEFT adapter at the end.

Hardware: a CPU with two cores and 4 GiB of free memory.
Command:  python recipes/custom_loop.py out/custom_loop
"""

import sys

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from hf_lora_ext import preset
from hf_lora_ext.data.stdlib_docstrings import docstring_examples
from hf_lora_ext.data.tokens import encode_examples, padded
from hf_lora_ext.models.base_models import find_base_model


def main(folder: str, model_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", steps: int = 60) -> list[float]:
    """Train an adapter into a folder; return the loss of each step."""
    base = find_base_model(model_name)
    p = preset(base.path)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision)
    model = AutoModelForCausalLM.from_pretrained(base.path, revision=base.revision, **p.model_kwargs)
    model.config._name_or_path = model.name_or_path = base.recorded_name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = get_peft_model(model, p.peft_config).to(device).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    schedule = get_scheduler(p.scheduler, optimizer, round(p.warmup_fraction * steps), steps)
    rows = (row for row in docstring_examples() if len(row["prompt"]) + len(row["completion"]) < 240)
    examples = encode_examples(rows, tokenizer, max_length=96)  # of a prompt and its completion the completion counts
    batches = torch.utils.data.DataLoader(
        examples, batch_size=4, shuffle=True, collate_fn=lambda some: padded(some, tokenizer.pad_token_id, device)
    )
    losses: list[float] = []
    for _, batch in zip(range(steps), batches, strict=False):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {len(losses):>3}  loss {losses[-1]:.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
