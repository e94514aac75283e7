from __future__ import annotations

import random

import numpy as np
import pytest

from divsel_ray.config.files import build_config
from divsel_ray.progress import Silent
from divsel_ray.score.perplexity import Perplexity
from divsel_ray.score.scorer import Exchange
from divsel_ray.stages import Job
from divsel_ray.store import Store
from tests.score.test_ifd import exchange, mean_loss


def direct_log_perplexity(folder, tokenizer, row: Exchange) -> float:
    # [UNK] because "User:" and "Assistant:" are no words of the toy vocabulary
    prompt = [4, 1, *tokenizer(row.messages[0]["content"], add_special_tokens=False).input_ids, 1]
    return mean_loss(folder, prompt, [*tokenizer(row.completion, add_special_tokens=False).input_ids, 5])


def test_the_score_of_equation_7_is_the_log_perplexity_of_the_completion_alone(language_model, chat_tokenizer):
    rows = [exchange("a", "w1 w2 w3", "w4 w5"), exchange("b", "w6", "w7 w8 w9 w1"), exchange("c", "w2 w2 w2 w2", "w3")]
    scores = Perplexity(1, str(language_model), 64, 512).score(rows)
    assert scores == pytest.approx([direct_log_perplexity(language_model, chat_tokenizer, row) for row in rows], rel=1e-4)


def test_as_a_quality_it_points_the_other_way(language_model, exchanges):
    strange, fluent = (Perplexity(sign, str(language_model), 64, 512).score(exchanges) for sign in (1, -1))
    assert (strange == -fluent).all()
    assert (strange > 0).all()


def test_scores_do_not_depend_on_the_order_bit_for_bit(language_model, exchanges):
    model = Perplexity(1, str(language_model), 64, 100)
    scores = dict(zip((row.row_id for row in exchanges), model.score(exchanges), strict=True))
    mixed = random.Random(1).sample(exchanges, len(exchanges))
    assert model.score(mixed).tolist() == [scores[row.row_id] for row in mixed]


def test_a_row_that_cannot_be_encoded_is_nan(language_model):
    model = Perplexity(1, str(language_model), 64, 512)
    scores = model.score([exchange("good", "w1", "w2"), Exchange("bad", [{"role": "user"}], "w2")])
    assert np.isfinite(scores).tolist() == [True, False]
    assert "row bad" in model.problem


@pytest.mark.parametrize(("direction", "notes"), [("lagging", 1), ("learned", 0)])
def test_a_job_warns_that_equation_7_favours_what_is_strange(tmp_path, direction, notes):
    said: list[str] = []
    progress = Silent()
    progress.note = said.append  # type: ignore[method-assign]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    values = {
        "budget": 4,
        "pool": {"data": str(tmp_path / "rows.jsonl")},
        "reward": {"perplexity": "some/lm"},
        "refine": {"train": {"model": "some/lm"}, "weights": {"direction": direction}},
    }
    job = Job(build_config(values, "test"), Store(tmp_path / "run"), progress, cluster=None, dry=True)
    assert job.reward(job.pool()) is None
    assert len(said) == notes
    assert all("some/lm finds strange" in text for text in said)
