from __future__ import annotations

import random

import numpy as np
import pytest

from divsel_ray.errors import InputError
from divsel_ray.score.deita import Deita, DigitModel, turns_of
from divsel_ray.score.scorer import Exchange
from tests.score.conftest import digit_tokenizer, llama_config

COMPLEXITY = (
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n##Query: {instruction}"
    "  \n##Complexity: "
)
QUALITY = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n"
    " #Question#:\n{instruction}\n#Response#:\n{output} \n##Quality: "
)


def save_model(folder, seed: int):
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(max_position_embeddings=128)).save_pretrained(folder)
    digit_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [str(save_model(tmp_path_factory.mktemp(f"digits-{seed}"), seed)) for seed in (1, 2)]


def expected_digit(folder: str, text: str) -> float:
    """Straight from the definition: one forward pass, the softmax of six logits, the mean digit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    odds = torch.softmax(logits[[tokenizer.convert_tokens_to_ids(digit) for digit in "123456"]].double(), dim=0)
    return float((odds * torch.arange(1, 7)).sum())


def test_the_score_is_the_expected_complexity_times_the_expected_quality(models):
    row = Exchange("a", [{"role": "user", "content": "w1 w2 w3"}], "w4 {instruction} w5")
    scorer = Deita(*models, 128, 512)
    score = scorer.score([row])
    complexity = expected_digit(models[0], COMPLEXITY.replace("{instruction}", "w1 w2 w3"))
    quality = expected_digit(models[1], QUALITY.replace("{instruction}", "w1 w2 w3").replace("{output}", "w4 {instruction} w5"))
    assert 1 < complexity < 6
    assert score == pytest.approx([complexity * quality], rel=1e-4)
    assert scorer.signals["complexity"] == pytest.approx([complexity], rel=1e-4)
    assert scorer.signals["response_quality"] == pytest.approx([quality], rel=1e-4)


def test_a_conversation_scores_the_sum_of_its_turns_and_keeps_the_mean_signals(models):
    turns = [("w1 w2", "w3"), ("w4", "w5 w6 w7")]
    messages = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    whole = Exchange("whole", [*messages, {"role": "user", "content": "w4"}], "w5 w6 w7")
    parts = [Exchange(f"part{at}", [{"role": "user", "content": turn[0]}], turn[1]) for at, turn in enumerate(turns)]
    scorer = Deita(*models, 128, 512)
    scores = scorer.score([whole, *parts])
    assert scores[0] == pytest.approx(scores[1] + scores[2], rel=1e-5)
    complexity = scorer.signals["complexity"]
    assert complexity[0] == pytest.approx((complexity[1] + complexity[2]) / 2, rel=1e-5)
    assert turns_of(whole) == turns


def test_what_is_too_long_is_cut_and_the_question_stays_whole(models):
    long = Exchange("long", [{"role": "user", "content": "w1 " * 300}], "w2 " * 500)
    scorer = Deita(*models, 64, 512)
    assert np.isfinite(scorer.score([long])).all()


def test_the_end_of_the_longest_part_is_cut_and_the_frame_and_the_other_part_are_whole(models):
    model = DigitModel(models[1], 64, 512)
    # The digits 1 to 6 are tokens of their own, and words that hold one are not.
    beginning, user, assistant, w0, w7, w8, w9 = model.encode(("user ", "w8 w9"), ["assistant w0 w7 "])
    ids = model.encode(("user ", " w0 ", " assistant"), ["w7 w7", "w8 " * 20 + "w9 " * 280])
    assert ids[:25] == [beginning, user, w7, w7, w0, *[w8] * 20]
    assert set(ids[25:-2]) == {w9}
    assert ids[-1] == assistant
    assert 56 < len(ids) <= 64


def test_a_question_that_alone_is_too_long_is_a_row_without_a_score(models):
    scorer = Deita(*models, 16, 512)
    assert np.isnan(scorer.score([Exchange("a", [{"role": "user", "content": "w1"}], "w2")])).all()
    assert "the question alone has more than 16 tokens" in scorer.problem


def test_a_row_without_a_question_is_nan_and_the_others_are_scored(models):
    rows = [
        Exchange("bad", [{"role": "system", "content": "w1"}], "w2"),
        Exchange("good", [{"role": "user", "content": "w1"}], "w2"),
    ]
    scorer = Deita(*models, 128, 512)
    scores = scorer.score(rows)
    assert np.isfinite(scores).tolist() == [False, True]
    assert "row bad" in scorer.problem
    assert np.isnan(scorer.signals["complexity"]).tolist() == [True, False]


def test_scores_do_not_depend_on_the_order_bit_for_bit(models, exchanges):
    scorer = Deita(*models, 128, 300)
    scores = dict(zip((row.row_id for row in exchanges), scorer.score(exchanges), strict=True))
    mixed = random.Random(1).sample(exchanges, len(exchanges))
    assert scorer.score(mixed).tolist() == [scores[row.row_id] for row in mixed]


def test_a_tokenizer_without_digits_is_refused(models, language_model):
    with pytest.raises(InputError, match="no token of its own for each of the digits"):
        Deita(str(language_model), models[1], 64, 512)
