"""A Hub to push to, and small adapters to push."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from git_hub_access import WRITE_TOKEN
from git_hub_state import Hub

from hf_lora_ext import push_adapter

REPO = "me/sums"
COMMITS = ["Push adapter", "initial commit"]
"""Titles after one push, newest first."""


@contextmanager
def pushing_to(hub: Hub, token: str | None = WRITE_TOKEN) -> Iterator[list[float]]:
    """Let this process's Hub be the stand-in, and its pauses short; yield the seconds that were to be waited."""
    pauses: list[float] = []
    sleep = time.sleep

    def short(seconds: float) -> None:
        pauses.append(seconds)
        sleep(min(seconds, 0.01))

    constants = "huggingface_hub.constants"
    with (
        patch(f"{constants}.ENDPOINT", hub.endpoint),
        patch(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"),
        patch.dict("os.environ", {"HF_TOKEN": token} if token else {}),
        patch("time.sleep", short),
    ):
        yield pauses


def push(folder: object, repo: str = REPO, **arguments):
    """Push with a licence, which the tiny base does not have."""
    return push_adapter(folder, repo, **{"license": "mit"} | arguments)


def saved_adapter(folder: Path, base: Path, **config: object) -> Path:
    """Save a random LoRA of a base."""
    lora_model(base, **config).save_pretrained(folder)
    return folder


def lora_model(base: Path, seed: int = 0, **config: object):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings | config))
