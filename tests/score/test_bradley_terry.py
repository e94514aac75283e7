from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from divsel_ray.config import FitRewardConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.score.bradley_terry import fit_comparisons, fit_reward_model, split_held_out
from divsel_ray.score.preferences import Comparison
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.scorer import Exchange


def toy_pool(size: int) -> list[Exchange]:
    """Completions count upwards from the prompt's word and end in w59: whole, ordered and relevant ones can be told."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, 40, size)
    texts = [" ".join([*(f"w{start + step}" for step in range(8)), "w59"]) for start in starts]
    return [Exchange(f"t{i:03d}", [{"role": "user", "content": f"w{starts[i]}"}], texts[i]) for i in range(size)]


def settings(base, **changes) -> FitRewardConfig:
    values = {"prompts": 160, "held_out": 40, "epochs": 6, "learning_rate": 3e-3, "max_tokens": 32, **changes}
    return FitRewardConfig(base=str(base), **values)


@pytest.fixture(scope="module")
def fitted(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "model"
    return folder, fit_reward_model(toy_pool(200), settings(encoder), 0, folder)


def test_the_fit_learns_what_tells_a_completion_from_a_spoiled_one(fitted):
    _, facts = fitted
    assert facts["train_loss"][-1] < 0.5 * facts["train_loss"][0]
    assert facts["held_out_accuracy"] > 0.8
    assert set(facts["accuracy_by_kind"]) == {"other_prompt", "truncated", "shuffled"}
    assert facts["accuracy_by_kind"]["truncated"] > 0.8


def test_the_pairs_are_counted(fitted):
    _, facts = fitted
    # Three per prompt; another prompt's completion may by chance be the same text and then makes no pair.
    assert 160 * 3 - 20 <= facts["pairs"] <= 160 * 3
    assert 40 * 3 - 10 <= facts["held_out_pairs"] <= 40 * 3


def test_the_saved_folder_is_an_ordinary_reward_model(fitted):
    folder, _ = fitted
    row = toy_pool(1)[0]
    spoiled = Exchange("spoiled", row.messages, "w59 w3 w1")
    scores = RewardModel(str(folder), 32, 256).score([row, spoiled])
    assert scores[0] > scores[1]
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in folder.iterdir())


def test_the_same_rows_in_another_order_give_the_same_model_bit_for_bit(encoder, tmp_path):
    rows, config = toy_pool(30), settings(encoder, prompts=20, held_out=10, epochs=1)
    mixed = random.Random(2).sample(rows, len(rows))
    first, second = (fit_reward_model(part, config, 0, tmp_path / name) for name, part in (("a", rows), ("b", mixed)))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert first | {"seconds": 0} == second | {"seconds": 0}


def test_the_learning_rate_falls_linearly_to_a_twentieth(encoder, tmp_path, monkeypatch):
    rates = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    config = settings(encoder, prompts=32, held_out=4, epochs=1, learning_rate=1e-3)
    fit_reward_model(toy_pool(36), config, 0, tmp_path / "m")
    # Four steps of eight prompts, each a fourth of the way from 1 to 0.05.
    assert rates == pytest.approx([1e-3 * (1 - 0.95 * step / 4) for step in range(4)])


def test_only_the_head_the_pooler_and_the_top_layers_change(encoder, tmp_path):
    from safetensors.numpy import load_file

    fit_reward_model(toy_pool(30), settings(encoder, prompts=20, held_out=10, epochs=1, trained_layers=1), 0, tmp_path / "m")
    before, after = load_file(encoder / "model.safetensors"), load_file(tmp_path / "m" / "model.safetensors")
    moved = {".".join(name.split(".")[:4]) for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {
        "bert.encoder.layer.1",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    } - {name for name in ("classifier.bias",) if np.array_equal(before[name], after[name])}


def test_held_out_rows_are_not_trained_on_and_a_small_pool_is_shared_alike(encoder):
    train, held_out = split_held_out(toy_pool(50), settings(encoder), 0)
    assert len(held_out) == 10  # 40 of 200, of 50
    assert len(train) == 40
    assert not {row.row_id for row in train} & {row.row_id for row in held_out}


def test_rows_beyond_those_asked_for_are_left_out(encoder):
    train, held_out = split_held_out(toy_pool(100), settings(encoder, prompts=20, held_out=10), 0)
    assert (len(train), len(held_out)) == (20, 10)


def test_too_small_a_pool_is_refused(encoder, tmp_path):
    with pytest.raises(InputError, match="the pool has 9 usable rows"):
        fit_reward_model(toy_pool(9), settings(encoder), 0, tmp_path / "m")


def test_prompts_that_the_base_refuses_are_counted(encoder, tmp_path):
    rows = toy_pool(30)
    rows[3] = Exchange(rows[3].row_id, [{"role": "user"}], rows[3].completion)
    facts = fit_reward_model(rows, settings(encoder, prompts=20, held_out=10, epochs=1), 0, tmp_path / "m")
    assert facts["refused"] == 1


def test_a_pool_whose_completions_cannot_be_told_apart_is_refused(encoder, tmp_path):
    rows = [Exchange(row.row_id, row.messages, "yes") for row in toy_pool(30)]
    with pytest.raises(InputError, match=r"0 of 20 prompts to learn from and 0 of 10 held out have completions"):
        fit_reward_model(rows, settings(encoder, prompts=20, held_out=10), 0, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_pairs_that_differ_beyond_what_the_model_sees_are_left_out(encoder, tmp_path):
    def pairs(count, start):
        prompts = [Exchange(f"{at:032x}", [{"role": "user", "content": "how are you"}], "w1 " * 40) for at in range(start, count)]
        chosen = [Exchange(one.row_id, one.messages, one.completion + "w2") for one in prompts]
        near = [Exchange(one.row_id, one.messages, "w3 " + one.completion) for one in prompts]
        return [Comparison(best, {"far": other, "near": bad}) for best, other, bad in zip(chosen, prompts, near, strict=True)]

    facts = fit_comparisons(pairs(16, 0), pairs(24, 16), settings(encoder, max_tokens=32), 0, tmp_path / "m")
    assert (facts["pairs"], facts["held_out_pairs"]) == (16, 8)
    assert set(facts["accuracy_by_kind"]) == {"near"}


def test_a_fit_that_diverges_is_no_result(encoder, tmp_path):
    with pytest.raises(JobError, match=r"^fitting a reward model diverged at step \d+ of \d+; lower its learning rate"):
        fit_reward_model(toy_pool(60), settings(encoder, learning_rate=1e30), 0, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_base_that_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^base model .*: cannot be loaded as the base of a reward model"):
        fit_reward_model(toy_pool(12), settings(tmp_path), 0, tmp_path / "m")


def test_training_reports_its_steps(encoder, tmp_path):
    seen = []
    config = settings(encoder, prompts=16, held_out=4, epochs=2)
    fit_reward_model(toy_pool(20), config, 0, tmp_path / "m", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
