"""LoraSFTTrainer, and the mixin before other trainers: whatever the stock trainer would upload goes as an adapter."""

import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest
from adaptive_runs import adapted, callback
from conftest import PAIRS
from datasets import Dataset
from git_hub_state import Hub
from peft import LoraConfig
from push_runs import REPO, pushing_to
from transformers import AutoTokenizer, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig

from hf_lora_ext import ConfigError, LoraSFTTrainer, PushAdapterCallback, PushError, PushMixin, PushResult
from hf_lora_ext.push.release import CARD, CONFIG, WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
TOKEN = "hf_write_token_of_me"
SETTINGS: dict[str, Any] = {
    "max_steps": 2, "save_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False,
    "per_device_train_batch_size": 2, "push_to_hub": True, "hub_model_id": REPO, "hub_token": TOKEN,
}  # fmt: skip
EXPECTED = {CARD, CONFIG, WEIGHTS, ".gitattributes", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


class PlainTrainer(PushMixin, Trainer):
    pass


class PreferenceTrainer(PushMixin, DPOTrainer):
    pass


@pytest.fixture
def hub(git_hub: Hub):
    with pushing_to(git_hub, token=None):
        yield git_hub


@pytest.fixture
def licensed(tiny_model: Path):
    """The tiny model with a licence, which `push_to_hub=True` has no argument for."""
    (tiny_model / CARD).write_text("---\nlicense: mit\n---\n")
    yield tiny_model
    (tiny_model / CARD).unlink()


def sft(model: Path, folder: Path, *callbacks, **settings: Any) -> LoraSFTTrainer:
    return LoraSFTTrainer(
        model=str(model), args=SFTConfig(str(folder), **(SETTINGS | settings)), callbacks=list(callbacks),
        train_dataset=Dataset.from_list(PAIRS), peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )  # fmt: skip


def ever(hub: Hub) -> set[str]:
    """Names of all files that any commit of any branch has had."""
    command = ["git", "-C", str(hub.folder("model", REPO)), "log", "--all", "--name-only", "--format="]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "strategy",
    [*(pytest.param(s, marks=pytest.mark.slow) for s in ("end", "every_save", "checkpoint")), "all_checkpoints"],
)
def test_every_strategy_pushes_adapters_and_never_the_folder(hub: Hub, licensed: Path, tmp_path: Path, strategy: str):
    trainer = sft(licensed, tmp_path, hub_strategy=strategy)
    trainer.train()
    history = hub.history(REPO)
    assert history[-1] == "initial commit"
    assert any(title.startswith("Step") for title in history) == (strategy != "end")
    assert {CARD, CONFIG, WEIGHTS} <= ever(hub) <= EXPECTED
    assert (tmp_path / "checkpoint-2" / "training_args.bin").is_file()
    assert TOKEN.encode() not in b"".join(hub.files(REPO).values())
    assert trainer.args.push_to_hub


def test_a_dpo_run_pushes_its_policy_alone(hub: Hub, licensed: Path, tmp_path: Path):
    pairs = [{"prompt": "1 + 1 = ", "chosen": "2", "rejected": "3"}] * 8
    settings = SETTINGS | {"max_steps": 1, "hub_strategy": "end", "gradient_checkpointing": False}
    trainer = PreferenceTrainer(
        model=str(licensed), args=DPOConfig(str(tmp_path), **settings), train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(licensed),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    assert hub.history(REPO) == ["End of training, step 1", "initial commit"]
    assert ever(hub) <= EXPECTED
    assert hub.files(REPO)[WEIGHTS] == (tmp_path / "checkpoint-1" / WEIGHTS).read_bytes()


def plain(model: Path, folder: Path, *callbacks, **settings: Any) -> PlainTrainer:
    rows = [{"input_ids": [2 + (n + i) % 90 for i in range(24)]} for n in range(8)]
    return PlainTrainer(
        model=adapted(model), args=TrainingArguments(str(folder), **(SETTINGS | settings)), callbacks=list(callbacks),
        train_dataset=Dataset.from_list([row | {"labels": row["input_ids"]} for row in rows]),
    )  # fmt: skip


def test_adaptive_rank_is_pushed_within_its_budget_where_the_stock_trainer_is_refused(
    hub: Hub, licensed: Path, tmp_path: Path
):
    trainer = plain(licensed, tmp_path, callback(), max_steps=12, hub_strategy="end")
    trainer.train()
    assert hub.history(REPO) == ["End of training, step 12", "initial commit"]
    stock = Trainer.init_hf_repo
    try:
        Trainer.init_hf_repo = lambda self, **given: None
        with pytest.raises(ConfigError, match="PushMixin before another trainer, pushes what is within it"):
            Trainer(
                model=adapted(licensed), args=trainer.args, train_dataset=trainer.train_dataset, callbacks=[callback()]
            ).train()
    finally:
        Trainer.init_hf_repo = stock


@pytest.mark.slow
def test_the_hub_s_arguments_are_followed(hub: Hub, licensed: Path, tmp_path: Path):
    trainer = plain(licensed, tmp_path, hub_private_repo=True, hub_revision="trial", hub_strategy="end")
    assert not hub.exists("model", REPO), "nothing is made before anything is trained"
    trainer.train()
    assert hub.history(REPO) == ["initial commit"]
    assert hub.history(REPO, "trial") == ["End of training, step 2", "initial commit"]
    pushed = trainer.push_to_hub(commit_message="Once more")
    assert (pushed.status, pushed.plan.is_private) == ("already there", True)


@pytest.mark.slow
def test_without_an_id_the_repository_is_named_after_the_folder(hub: Hub, licensed: Path, tmp_path: Path):
    plain(licensed, tmp_path / "sums", hub_model_id=None, hub_strategy="end").train()
    assert hub.history(REPO)[0] == "End of training, step 2"


@pytest.mark.slow
def test_a_card_written_by_hand_is_pushed_from_every_save_and_stays(hub: Hub, licensed: Path, tmp_path: Path):
    (tmp_path / CARD).write_text(card := "---\nlicense: mit\n---\n# Mine\nBy hand.\n")
    trainer = sft(licensed, tmp_path, hub_strategy="every_save")
    trainer.train()
    trainer.save_model()
    assert "# Mine\nBy hand.\n" in (tmp_path / CARD).read_text()
    trainer.push_to_hub()
    assert b"# Mine\nBy hand.\n" in hub.files(REPO)[CARD]
    assert not list(tmp_path.glob("README.own*"))
    (tmp_path / CARD).write_text(card)
    trainer.create_model_card()
    assert (tmp_path / CARD).read_text() == card


def test_save_model_pushes_as_the_stock_trainer_does_and_makes_no_commit_of_the_same(
    hub: Hub, licensed: Path, tmp_path: Path
):
    trainer = plain(licensed, tmp_path, hub_strategy="end")
    trainer.train()
    trainer.save_model()
    assert hub.history(REPO) == ["End of training, step 2", "initial commit"]


def test_push_to_hub_by_hand_takes_what_the_stock_one_takes_and_more(
    hub: Hub, licensed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = plain(licensed, tmp_path, push_to_hub=False, hub_model_id=None, hub_token=None, save_strategy="no")
    trainer.train()
    with caplog.at_level(logging.WARNING, logger="hf_lora_ext"):
        result = trainer.push_to_hub("Sums", token=TOKEN, repo_id=REPO, tag="v1", dataset_name="sums", language="en")
    assert isinstance(result, PushResult)
    assert (result.status, result.is_verified, result.tag) == ("pushed", True, "v1")
    assert hub.history(REPO) == ["Sums", "initial commit"]
    assert "dataset_name, language of the stock card is not used" in caplog.text
    later = trainer.push_to_hub(blocking=False, token=TOKEN, repo_id=REPO, revision="later")
    assert later.result(60).commit == hub.head(REPO, "later")
    with pytest.raises(ConfigError, match="push_to_hub knows no tags_; did you mean `tag`"):
        trainer.push_to_hub(tags_="x")


def test_what_cannot_be_pushed_is_refused_before_the_first_step(hub: Hub, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing says what licence tiny-llama has"):
        plain(tiny_model, tmp_path).train()
    with pytest.raises(PushError, match="does not accept the token"):
        plain(tiny_model, tmp_path, hub_token="hf_of_nobody").train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_two_ways_to_push_one_run_are_refused(hub: Hub, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="would both push"):
        plain(tiny_model, tmp_path, PushAdapterCallback(REPO))


def test_the_stock_push_methods_that_are_taken_over_exist():
    for name in ("init_hf_repo", "push_to_hub", "train", "save_model", "add_callback", "create_model_card"):
        assert callable(getattr(Trainer, name))
