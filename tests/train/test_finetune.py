"""Fine-tuning: adapters and models learn, the same seed gives the same bytes, and so does a training that was killed."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from divsel_ray.config import TrainConfig, Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.train.finetune import Origin, Resumption, finetune
from divsel_ray.train.trainer import learning_rate_factor
from tests.json_lines import read_lines
from tests.models.tiny import save_language_model, save_unpackable_model
from tests.train.rows import NO_SYSTEM, conversations, with_system

ROWS = conversations(18)
WEIGHTS = {"lora": "adapter/adapter_model.safetensors", "full": "model/model.safetensors"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("lm")))


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{"model": "tiny", "epochs": 2, "learning_rate": 0.01, "max_tokens": 64, **changes})


@pytest.mark.parametrize("method", ["lora", "full"])
def test_training_lowers_the_loss_and_is_the_same_twice(method, model_folder, tmp_path):
    weights = []
    for attempt in ("first", "second"):
        facts = finetune(model_folder, ROWS, ROWS[:4], settings(method=method, epochs=3), 3, tmp_path / attempt)
        assert facts["held_out_loss"] < facts["held_out_loss_base"] - 0.1
        assert facts["steps"] == 15
        weights.append((tmp_path / attempt / WEIGHTS[method]).read_bytes())
    assert weights[0] == weights[1]
    lines = read_lines(tmp_path / "first" / "losses.jsonl")
    assert [(line["step"], line["steps"]) for line in lines] == [(step, 15) for step in range(1, 16)]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert facts["train_loss"] == pytest.approx(sum(line["loss"] for line in lines) / 15)


def test_a_fully_trained_model_is_one_that_transformers_loads(model_folder, tmp_path):
    config = settings(method="full", dtype="bfloat16")
    finetune(model_folder, ROWS, [], config, 0, tmp_path)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert trained.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("how are you").input_ids
    assert {file.suffix for file in (tmp_path / "model").iterdir()} <= {".json", ".safetensors"}


def test_a_killed_training_goes_on_as_if_nothing_had_happened(model_folder, tmp_path):
    config = settings(checkpoint_steps=3)
    whole = finetune(model_folder, ROWS, ROWS[:4], config, 3, tmp_path / "whole")
    kept = tmp_path / "checkpoint"

    def keep_and_die(saved):
        shutil.copytree(saved, kept)
        if "checkpoint-3" in saved.name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(
            model_folder,
            ROWS,
            ROWS[:4],
            config,
            3,
            tmp_path / "killed",
            resumption=Resumption(tmp_path / "scratch", None, keep_and_die),
        )
    # What a killed process wrote after its last checkpoint must not stay.
    with (tmp_path / "killed" / "losses.jsonl").open("a") as stream:
        stream.write('{"step": 4, "steps": 10, "loss": 99}\n')
    after = finetune(
        model_folder,
        ROWS,
        ROWS[:4],
        config,
        3,
        tmp_path / "killed",
        resumption=Resumption(tmp_path / "scratch", kept, lambda _: None),
    )
    assert after == {**whole, "resumed_from": 3}
    for name in (WEIGHTS["lora"], "losses.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_later_round_goes_on_from_the_last_one(model_folder, tmp_path):
    for method, name in (("lora", "adapter"), ("full", "model")):
        config = settings(method=method)
        first = finetune(model_folder, ROWS, ROWS[:4], config, 0, tmp_path / method / "1")
        origin = Origin(first["held_out_loss_base"], tmp_path / method / "1" / name)
        second = finetune(
            model_folder, ROWS[:4], ROWS[:4], settings(method=method, learning_rate=1e-9), 0, tmp_path / "2", origin
        )
        assert second["held_out_loss_base"] == first["held_out_loss_base"]
        assert second["held_out_loss"] == pytest.approx(first["held_out_loss"], rel=1e-3)


def test_accumulated_batches_take_the_steps_of_one_large_batch(model_folder, tmp_path):
    """And so do batches whose activations are computed twice, and one worker where three were configured."""
    ways = {
        "large": settings(batch_size=6),
        "alone": settings(batch_size=2, workers=Workers(count=3)),
        "accumulated": settings(batch_size=2, gradient_accumulation=3),
        "recomputed": settings(batch_size=6, gradient_checkpointing=True),
    }
    for name, config in ways.items():
        finetune(model_folder, ROWS[:17], [], config, 1, tmp_path / name)
    weights = {name: load_file(tmp_path / name / WEIGHTS["lora"]) for name in ways}
    for name in ways:
        torch.testing.assert_close(weights[name], weights["large"], rtol=1e-3, atol=1e-4)


def test_packing_takes_fewer_steps_over_the_same_tokens(model_folder, tmp_path):
    apart = finetune(model_folder, ROWS, ROWS[:4], settings(batch_size=1), 1, tmp_path / "apart")
    packed = finetune(model_folder, ROWS, ROWS[:4], settings(batch_size=1, packing=True), 1, tmp_path / "packed")
    assert packed["tokens"] == apart["tokens"]
    assert packed["steps"] <= math.ceil(packed["tokens"] / 2 / 40) * 2 < apart["steps"]
    assert packed["held_out_loss"] < packed["held_out_loss_base"]


@pytest.mark.parametrize("changes", [{}, {"packing": True}, {"gradient_accumulation": 2}, {"gradient_checkpointing": True}])
def test_rows_that_the_chat_template_refuses_are_left_out_of_the_loss_and_listed(changes, model_folder, tmp_path):
    """In batches of one, some steps have nothing to learn."""
    config, origin = settings(batch_size=1, **changes), Origin(chat_template=NO_SYSTEM)
    rows = [with_system(row) if number % 6 == 1 else row for number, row in enumerate(ROWS)]
    known = [row for row, other in zip(rows, ROWS, strict=True) if row is other]
    facts = finetune(model_folder, rows, rows[:4], config, 3, tmp_path / "some", origin)
    without = finetune(model_folder, known, known[:3], config, 3, tmp_path / "none", origin)
    assert (facts["refused"], facts["held_out_refused"], without["refused"]) == (3, 1, 0)
    assert facts["tokens"] == without["tokens"]
    assert facts["held_out_loss_base"] == pytest.approx(without["held_out_loss_base"], rel=1e-5)
    assert facts["held_out_loss"] < facts["held_out_loss_base"] - 0.1
    lines = read_lines(tmp_path / "some" / "losses.jsonl")
    assert len(lines) == facts["steps"]
    assert all(math.isfinite(line["loss"]) for line in lines)
    listed = read_lines(tmp_path / "some" / "refused.jsonl")
    assert [row["row_id"] for row in listed] == [ROWS[number].row_id for number in (1, 7, 13)]
    assert {row["reason"] for row in listed} == {"TemplateError: System role not supported"}
    assert not (tmp_path / "none" / "refused.jsonl").exists()


def test_a_chat_template_that_refuses_every_row_ends_the_training_in_its_words(model_folder, tmp_path):
    rows = [with_system(row) for row in ROWS]
    with pytest.raises(JobError, match=r"refuses all 18 rows, the first because: TemplateError: System role not supported$"):
        finetune(model_folder, rows, [], settings(), 3, tmp_path, Origin(chat_template=NO_SYSTEM))


def test_bfloat16_adapters_are_kept_in_float32(model_folder, tmp_path):
    finetune(model_folder, ROWS, [], settings(dtype="bfloat16"), 0, tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / WEIGHTS["lora"]).values()} == {torch.float32}


@pytest.mark.parametrize("changes", [{"max_loss": 0.5}, {"learning_rate": 1e30, "epochs": 4}])
def test_a_diverging_loss_stops_with_what_to_change(changes, model_folder, tmp_path):
    with pytest.raises(JobError, match=r"at step \d+: loss .*lower refine\.train\.learning_rate"):
        finetune(model_folder, ROWS, [], settings(method="full", **changes), 0, tmp_path)


def test_a_training_of_a_single_step_learns(model_folder, tmp_path):
    facts = finetune(model_folder, ROWS[:4], ROWS[:4], settings(epochs=1, batch_size=4), 0, tmp_path)
    assert facts["steps"] == 1
    assert facts["held_out_loss"] < facts["held_out_loss_base"]


def test_every_step_of_a_training_has_a_learning_rate(model_folder, tmp_path):
    for steps, ratio in ((1, 0.1), (1, 1.0), (3, 0.1), (3, 0.5), (20, 0.1), (20, 1.0)):
        factors = [learning_rate_factor(step, steps=steps, warmup_ratio=ratio) for step in range(steps)]
        warmup = int(ratio * steps)
        assert min(factors) > 0
        assert max(factors) == (1 if warmup < steps else factors[-1])
        assert factors[:warmup] == sorted(factors[:warmup])
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize("packing", [True, False])
def test_packing_is_refused_where_the_model_lets_rows_see_one_another(packing, tmp_path):
    folder = str(save_unpackable_model(tmp_path / "bloom"))
    if packing:
        with pytest.raises(InputError, match=r"refine\.train\.packing: BloomForCausalLM .* does not separate packed rows"):
            finetune(folder, ROWS, [], settings(packing=True, method="full"), 0, tmp_path / "out")
    else:
        assert finetune(folder, ROWS, [], settings(method="full", epochs=1), 0, tmp_path / "out")["steps"] == 5
