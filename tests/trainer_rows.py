"""Rows of the form that each trainer takes."""

from typing import Any

from hf_lora_ext.runs.trainer_kinds import TRAINER_KINDS

TOPICS = ("fish", "tree", "stone")
_ROWS = {
    "prompt-completion": lambda n: {"prompt": f"{n}+1=", "completion": f"{n + 1}"},
    "preference": lambda n: {"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": f"{n + 2}"},
    "unpaired preference": lambda n: {"prompt": f"{n}+1=", "completion": f"{n + n % 2}", "label": n % 2 == 1},
    "prompt-only": lambda n: {"prompt": f"{n}+1=", "completion": f"{n + 1}"},
    "labelled text": lambda n: {"text": f"A {TOPICS[n % 3]} {n}", "label": TOPICS[n % 3]},
}


def rows_for(trainer: str, count: int = 30) -> list[dict[str, Any]]:
    """Return rows of the first form that a trainer takes."""
    return [_ROWS[TRAINER_KINDS[trainer].forms[0]](n) for n in range(count)]
