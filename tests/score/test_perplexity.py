from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config.files import build_config
from divsel_ray.progress import Silent
from divsel_ray.score.crew import shard_part
from divsel_ray.score.parts import score_part
from divsel_ray.score.perplexity import Perplexity
from divsel_ray.score.scorer import Exchange
from divsel_ray.score.spec import ScorerSpec
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


def test_a_text_that_was_cut_is_not_asked_for_its_end(language_model, chat_tokenizer):
    whole = exchange("a", "w1 w2 w3", "w4 w5")
    score = Perplexity(1, str(language_model), 64, 512).score([replace(whole, cut=True)])
    ids = chat_tokenizer("w4 w5", add_special_tokens=False).input_ids
    prompt = [4, 1, *chat_tokenizer("w1 w2 w3", add_special_tokens=False).input_ids, 1]
    assert score == pytest.approx([mean_loss(language_model, prompt, ids)], rel=1e-4)


def test_both_opinions_on_a_shard_leave_out_the_ends_of_what_was_cut(language_model, tmp_path):
    prompt = [{"role": "user", "content": "w1"}]
    row = {"row_id": "a", "sample": 0, "prompt_messages": prompt, "gold": "w2 w3", "generated": "w4", "generated_cut": False}
    spec, scores = ScorerSpec("log_perplexity", str(language_model), 64, 512), []
    for cut in (False, True):
        shard = tmp_path / f"{cut}.parquet"
        pq.write_table(pa.Table.from_pylist([{**row, "gold_cut": cut}]), shard)
        part = shard_part(shard, tmp_path / "scores")
        score_part(part, spec.load)
        scores.append(dict(zip(*pq.read_table(part.target).to_pydict().values(), strict=True)))
    assert scores[0]["a:gold"] != scores[1]["a:gold"]
    assert scores[0]["a:0"] == scores[1]["a:0"]


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
    assert all("some/lm finds unlikely" in text for text in said)
