"""Preset, adaptive rank, facts and push in one run of every trainer, without our runner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import PAIRS
from datasets import Dataset
from git_hub_state import Hub
from peft import PeftModel, get_peft_model
from push_runs import REPO, pushing_to
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, IntervalStrategy

from hf_lora_ext import ConfigError, FactsCallback, OverfitCallback, PushAdapterCallback, preset
from hf_lora_ext.cards.facts import read_facts
from hf_lora_ext.push.release import CARD, CONFIG, WEIGHTS
from hf_lora_ext.runs.trainer_kinds import TRAINER_KINDS, TRAINERS
from hf_lora_ext.runs.training import library_class

PREFERENCES = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in PAIRS]
JUDGED = [{**row, "label": n % 2 == 0} for n, row in enumerate(PAIRS)]
LABELLED = [{"text": row["completion"], "label": n % 2} for n, row in enumerate(PAIRS)]
DATA = {
    "sft": PAIRS, "dpo": PREFERENCES, "kto": JUDGED, "reward": PREFERENCES, "grpo": PAIRS, "rloo": PAIRS,
    "classification": LABELLED, "seq2seq": PAIRS,
}  # fmt: skip
BY_REWARDS = [name for name, kind in TRAINER_KINDS.items() if kind.has_rewards]


def shortness(completions: list[str], **columns: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


def built(
    trainer: str, model_folder: Path, folder: Path, callbacks: list[Any], eval_dataset: Any = None, **wishes: Any
) -> Any:
    """A trainer as a user writes it, from what a preset gives."""
    kind, rows = TRAINER_KINDS[trainer], Dataset.from_list(DATA[trainer])
    p = preset(str(model_folder), rank=2, **wishes)
    sampled = {"num_generations": 2, "max_completion_length": 4} if kind.has_rewards else {}
    args = p.training_config(
        trainer, str(folder), max_steps=10, learning_rate=1e-2, report_to="none", disable_tqdm=True, save_steps=5,
        per_device_train_batch_size=2, gradient_accumulation_steps=1, logging_steps=1, **sampled,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    given: dict[str, Any] = {"args": args, "processing_class": tokenizer, "callbacks": [*p.callbacks(), *callbacks]}
    if kind.has_rewards:
        given["reward_funcs"] = shortness
    if kind.is_trl:
        model, given["peft_config"] = str(model_folder), p.adapter_config(trainer)
    else:
        heads = {"num_labels": 2, "pad_token_id": 0} if trainer == "classification" else {}
        model = getattr(transformers, kind.model).from_pretrained(model_folder, **heads)
        model = get_peft_model(model, p.adapter_config(trainer))
        rows = rows.map(
            lambda row: tokenised(row, tokenizer), remove_columns=["prompt"] if "prompt" in DATA[trainer][0] else []
        )
    if trainer == "seq2seq":
        given["data_collator"] = DataCollatorForSeq2Seq(tokenizer, model=model)
    return library_class(kind, kind.trainer)(model=model, train_dataset=rows, eval_dataset=eval_dataset, **given)


def tokenised(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    if "label" in row:
        return dict(tokenizer(row["text"]))
    return {**tokenizer(row["prompt"]), "labels": tokenizer(row["completion"])["input_ids"]}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_preset_adaptive_rank_facts_and_push_work_together_under_it(
    trainer: str, git_hub: Hub, tiny_model: Path, tiny_t5: Path, tmp_path: Path
):
    kind = TRAINER_KINDS[trainer]
    adaptive = trainer not in BY_REWARDS
    base = tiny_t5 if trainer == "seq2seq" else tiny_model
    named = {} if kind.is_trl else {"method": trainer}
    facts = FactsCallback(Dataset.from_list(DATA[trainer]), name="sums", **named)
    with pushing_to(git_hub):
        callbacks = [facts, PushAdapterCallback(REPO, license="mit")]
        run = built(trainer, base, tmp_path, callbacks, adaptive_rank=adaptive)
        run.train()
        files = git_hub.files(REPO)
    assert {CARD, CONFIG, WEIGHTS, "facts.json"} <= set(files)
    told = read_facts(tmp_path / "facts.json")
    assert told.run["method"] == trainer
    assert told.adapter["task_type"] == kind.task_type
    assert (tmp_path / "rank_history.json").is_file() == adaptive
    assert ("layer_ranks" in told.adapter) == adaptive
    (tmp_path / "pushed").mkdir()
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "pushed" / name).write_bytes(files[name])
    again = reloaded(trainer, base, tmp_path / "pushed")
    assert {n: p.shape for n, p in again.named_parameters() if "lora_" in n} == {
        n: p.shape for n, p in run.model.named_parameters() if "lora_" in n
    }


def reloaded(trainer: str, base: Path, adapter: Path) -> PeftModel:
    heads = {"reward": {"num_labels": 1}, "classification": {"num_labels": 2}}.get(trainer, {})
    model = getattr(transformers, TRAINER_KINDS[trainer].model).from_pretrained(base, **heads)
    return PeftModel.from_pretrained(model, adapter)


@pytest.mark.parametrize("trainer", BY_REWARDS)
def test_a_preset_of_adaptive_rank_is_refused_by_what_learns_from_rewards(
    trainer: str, tiny_model: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=f"trainer {trainer} does not work with adaptive rank: gradients of rewards"):
        built(trainer, tiny_model, tmp_path, [], adaptive_rank=True)


@pytest.mark.parametrize("trainer", BY_REWARDS)
def test_overfitting_is_not_watched_by_a_loss_that_says_nothing(
    trainer: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    held_out = Dataset.from_list(DATA[trainer][:2])
    run = built(trainer, tiny_model, tmp_path, [OverfitCallback(action="best")], eval_dataset=held_out)
    run.args.max_steps, run.args.eval_strategy, run.args.eval_steps = 2, IntervalStrategy.STEPS, 1
    run.train()
    assert "the loss of this trainer says nothing of the adapter" in caplog.text
    assert any("eval_loss" in row for row in run.state.log_history)
    assert not any("overfit/kept_step" in row for row in run.state.log_history)
