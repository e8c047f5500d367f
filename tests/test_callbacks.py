"""FactsCallback beside a user's own trainer: what it gathers, and what it must never gather."""

import json
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import PAIRS
from hypothesis import given
from hypothesis import strategies as st

from hf_lora_ext import Facts, FactsCallback, preset, render_card, write_card
from hf_lora_ext.callbacks.facts import hyperparameters, training_method
from hf_lora_ext.callbacks.losses import MOST_POINTS, loss_history, thinned
from hf_lora_ext.cards.ownership import sealed, text_block


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets import Dataset
    from trl import SFTTrainer

    folder = tmp_path_factory.mktemp("home-of-somebody") / "out"
    dataset = Dataset.from_list(PAIRS)
    p = preset(str(tiny_model))
    args = p.sft_config(
        str(folder), max_steps=4, eval_strategy="steps", eval_steps=2, eval_on_start=True, report_to="none",
        disable_tqdm=True, logging_steps=1, hub_token="hf_" + "a" * 34, run_name=str(folder / "secret-run"),
    )  # fmt: skip
    trainer = SFTTrainer(
        model=p.model_id, args=args, train_dataset=dataset, eval_dataset=dataset.select(range(4)),
        peft_config=p.peft_config,
        callbacks=[FactsCallback(dataset=dataset, eval_dataset=dataset.select(range(4)), name="sums")],
    )  # fmt: skip
    trainer.train()
    return folder


def again(tiny_model: Path, folder: Path, *callbacks, resume: str | None = None, **settings):
    """Train the tiny model with trl's own trainer, which writes a card at each save."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    chosen = {"max_steps": 2, "save_steps": 1, "report_to": "none", "disable_tqdm": True, "bf16": False} | settings
    trainer = SFTTrainer(
        model=str(tiny_model), args=SFTConfig(str(folder), use_cpu=True, **chosen), callbacks=list(callbacks),
        train_dataset=Dataset.from_list(PAIRS), peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


BY_HAND = "---\nlicense: mit\n---\n# Mine\nBy hand.\n"
WITHIN = sealed(f"# Made\n\n{text_block('What I think of it.')}\n")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("card", [BY_HAND, WITHIN], ids=["by hand", "between the marks"])
def test_what_a_person_wrote_on_the_card_survives_trl_s_own_cards(tiny_model: Path, tmp_path: Path, card: str):
    (tmp_path / "README.md").write_text(card)
    again(tiny_model, tmp_path)
    assert "trained using [TRL]" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(card)
    again(tiny_model, tmp_path, FactsCallback())
    assert (tmp_path / "README.md").read_text() == card
    assert not list(tmp_path.glob("README.own*"))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_card_survives_a_run_that_dies_between_trl_s_card_and_its_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import Trainer

    (tmp_path / "README.md").write_text(BY_HAND)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", lambda *a, **k: (_ for _ in ()).throw(OSError("died")))
        with pytest.raises(OSError, match="died"):
            again(tiny_model, tmp_path, FactsCallback())
    assert (tmp_path / "README.md").read_text() != BY_HAND
    again(tiny_model, tmp_path, FactsCallback())
    assert (tmp_path / "README.md").read_text() == BY_HAND


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_what_was_stated_survives_another_training_in_the_folder(tiny_model: Path, tmp_path: Path):
    again(tiny_model, tmp_path, FactsCallback())
    write_card(tmp_path, language="en", intended_use="Sums.")
    again(tiny_model, tmp_path, FactsCallback(), max_steps=3)
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        facts = Facts.from_dict(json.loads((folder / "facts.json").read_text()))
        assert facts.run["steps"] == 3
        assert (facts.stated.language, facts.stated.intended_use) == (("en",), "Sums.")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_facts_that_cannot_be_read_are_told_and_written_anew(tiny_model: Path, tmp_path: Path, caplog):
    (tmp_path / "facts.json").write_text("{")
    again(tiny_model, tmp_path, FactsCallback())
    assert "what may be stated in it is lost" in caplog.text
    assert json.loads((tmp_path / "facts.json").read_text())["run"]["steps"] == 2


def test_facts_tell_model_data_settings_losses_and_environment(trained: Path):
    facts = Facts.from_dict(json.loads((trained / "facts.json").read_text()))
    assert facts.base_model.name == "tiny-llama"
    assert (facts.data.name, facts.data.form, facts.data.train_examples) == ("sums", "prompt-completion", 40)
    assert facts.adapter["rank"] == 8
    assert facts.adapter["trainable_parameters"] > 0
    assert facts.hyperparameters["learning_rate"] == 2e-4
    assert facts.hyperparameters["max_length"] == 256
    assert facts.run["steps"] == 4
    assert facts.run["method"] == "sft"
    assert facts.run["examples_per_step"] == 16
    assert facts.run["train_seconds"] > 0
    assert {row["step"] for row in facts.loss_history} == {0, 1, 2, 3, 4}
    assert facts.evaluation["base"]["loss"] != facts.evaluation["adapter"]["loss"]
    assert {"torch", "peft", "trl", "transformers"} <= set(facts.environment["versions"])


def test_the_loss_curve_lies_beside_the_facts(trained: Path):
    facts = Facts.from_dict(json.loads((trained / "facts.json").read_text()))
    assert facts.pictures == ("loss_curve.png",)
    assert (trained / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_what_a_trainer_does_is_told_by_trl_s_own_name(tmp_path: Path):
    from transformers import TrainingArguments
    from trl import DPOConfig, RewardConfig

    class Mine(DPOConfig):
        pass

    kinds = {Mine: "dpo", RewardConfig: "reward", TrainingArguments: None}
    assert {
        kind: training_method(kind(output_dir=str(tmp_path), report_to="none", use_cpu=True)) for kind in kinds
    } == kinds


def test_what_codecarbon_measured_is_taken_up(tiny_model: Path, tmp_path: Path):
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class LikeCodeCarbon(TrainerCallback):
        """Writes its row when training ends, before the callbacks that a user gave, as a reporter does."""

        def on_train_end(self, args, state, control, **kwargs):
            row = f"{datetime.now():%Y-%m-%dT%H:%M:%S},0.001,0.5,Norway,10.7,59.9"
            columns = "timestamp,emissions,energy_consumed,country_name,longitude,latitude"
            (Path(args.output_dir) / "emissions.csv").write_text(f"{columns}\n{row}\n")

    p = preset(str(tiny_model))
    args = p.sft_config(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, save_strategy="no")
    rows = Dataset.from_list(PAIRS[:4])
    trainer = SFTTrainer(model=p.model_id, args=args, train_dataset=rows, peft_config=p.peft_config,
                         callbacks=[LikeCodeCarbon(), FactsCallback(rows)])  # fmt: skip
    trainer.train()
    card = render_card(json.loads((tmp_path / "facts.json").read_text()))
    assert "co2_eq_emissions:\n  emissions: 1.0\n" in card
    assert "0.5 kWh, 1 g CO2eq (Norway)" in card


def test_no_token_and_no_local_path_reaches_facts_or_card(trained: Path, tiny_model: Path):
    text = (trained / "facts.json").read_text()
    both = text + render_card(json.loads(text))
    for secret in ("hf_aaaa", "secret-run", str(trained), str(trained.parent), str(tiny_model), str(Path.home())):
        assert secret not in both


def test_a_trainer_without_a_dataset_at_hand_still_writes_facts(tiny_model: Path, tmp_path: Path):
    from datasets import Dataset
    from trl import SFTTrainer

    p = preset(str(tiny_model))
    args = p.sft_config(str(tmp_path), max_steps=1, report_to="none", disable_tqdm=True, save_strategy="no")
    path = tmp_path / "elsewhere" / "known.json"
    SFTTrainer(
        model=p.model_id, args=args, train_dataset=Dataset.from_list(PAIRS), peft_config=p.peft_config,
        callbacks=[FactsCallback(path=path)],
    ).train()  # fmt: skip
    facts = json.loads(path.read_text())
    assert "data" not in facts
    assert "Training data" not in render_card(facts)


def test_a_repeated_log_row_counts_once():
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 4.0}]
    assert loss_history(log) == ({"step": 1, "loss": 3.0}, {"step": 2, "eval_loss": 4.0}, {"step": 2, "loss": 1.0})


@given(
    curves=st.fixed_dictionaries({
        "loss": st.lists(st.floats(-9, 9), max_size=60), "eval_loss": st.lists(st.floats(-9, 9), max_size=12)
    }),
    most=st.integers(4, 20),
)  # fmt: skip
def test_a_thinned_history_is_bounded_and_keeps_ends_and_extremes(curves: dict[str, list[float]], most: int):
    log = [{"step": step, key: loss} for key, losses in curves.items() for step, loss in enumerate(losses)]
    whole = loss_history(log)
    thin = thinned(whole, most)
    assert [row for row in whole if row in thin] == list(thin)
    for key in curves:
        before, after = ([row for row in rows if key in row] for rows in (whole, thin))
        assert len(after) <= most
        assert after == before if len(before) <= most else len(after) < len(before)
        if before:
            assert (after[0], after[-1]) == (before[0], before[-1])
            for extreme in (min, max):
                assert extreme(row[key] for row in after) == extreme(row[key] for row in before)


def test_a_thinned_history_keeps_the_shape_and_what_broke():
    whole = [{"step": step, "loss": float("nan") if step == 700 else 4 / (1 + step)} for step in range(20_000)]
    thin = thinned(whole)
    assert len(thin) <= MOST_POINTS
    assert 700 in {row["step"] for row in thin}
    widest = max(after["step"] - before["step"] for before, after in pairwise(thin))
    assert widest <= 2 * 20_000 / (MOST_POINTS // 2 - 1)


def test_facts_of_a_long_run_hold_the_outline_of_its_losses(tiny_model: Path, tmp_path: Path):
    from adaptive_runs import adapted, build

    log = [{"step": step, "loss": 1 / (1 + step)} for step in range(5_000)]
    callback = FactsCallback()
    trainer = build(adapted(tiny_model), tmp_path, callback, max_steps=1)
    trainer.train()
    trainer.state.log_history[:0] = log
    callback.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    text = (tmp_path / "facts.json").read_text()
    assert 2 < len(json.loads(text)["loss_history"]) <= MOST_POINTS
    assert len(text) < 100_000


def test_hyperparameters_hold_what_shapes_the_result_and_nothing_private(tmp_path: Path):
    args = preset("7B").sft_config(str(tmp_path), hub_token="hf_" + "b" * 34, max_steps=5)
    found = hyperparameters(args)
    assert {"learning_rate", "lr_scheduler_type", "optim", "seed", "per_device_train_batch_size", "max_steps"} <= set(
        found
    )
    assert not {name for name in found if name.startswith(("hub", "output", "log", "report")) or "token" in name} - {
        "average_tokens_across_devices"
    }
    assert json.dumps(found)


def test_adalora_s_facts_hold_no_rank_that_it_ignores():
    from peft import AdaLoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_lora_ext.adapters.peft_seam import describe_adapter

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AdaLoraConfig(task_type="CAUSAL_LM", init_r=6, target_r=4, total_step=10, target_modules=["q_proj"])
    told = describe_adapter(get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=11, **small)), config))
    assert told["rank"] == told["config"]["target_r"] == 4
    assert "r" not in told["config"]
