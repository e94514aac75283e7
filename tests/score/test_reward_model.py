from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from divsel_ray.errors import InputError
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.scorer import Exchange
from divsel_ray.score.spec import ScorerSpec


def exchange(row_id: str, prompt: str, completion: str) -> Exchange:
    return Exchange(row_id, [{"role": "user", "content": prompt}], completion)


def plain_logit(folder, *texts: str) -> float:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.item()


def test_an_encoder_scores_a_pair_as_plain_transformers_does(encoder):
    score = RewardModel(str(encoder), 64, 512).score([exchange("a", "w1 w2 w3", "w4 w5")])
    assert score.dtype == np.float64
    assert score == pytest.approx([plain_logit(encoder, "w1 w2 w3", "w4 w5")], abs=1e-6)


def test_a_scorer_is_loaded_with_the_threads_it_is_given_and_leaves_them_where_none_are(encoder):
    import torch

    before = torch.get_num_threads()
    try:
        for threads, found in ((3, 3), (None, 3), (2, 2)):
            ScorerSpec("reward", str(encoder), 64, 512).load(threads)
            assert torch.get_num_threads() == found
    finally:
        torch.set_num_threads(before)


def test_a_decoder_scores_the_rendered_chat_as_plain_transformers_does_also_in_a_padded_batch(chat_reward):
    rows = [exchange("a", "w1 w2 w3", "w4 w5"), exchange("b", "w6", "w7"), exchange("c", "w1 w2 w3 w4 w5 w6", "w8 w9 w10")]
    expected = [
        plain_logit(chat_reward, f" user {row.messages[0]['content']} [EOS] assistant {row.completion} [EOS]") for row in rows
    ]
    assert RewardModel(str(chat_reward), 64, 512).score(rows) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3


@pytest.mark.parametrize("kind", ["encoder", "chat_reward"])
def test_scores_do_not_depend_on_the_order_bit_for_bit(kind, exchanges, request):
    model = RewardModel(str(request.getfixturevalue(kind)), 64, 100)
    scores = dict(zip((row.row_id for row in exchanges), model.score(exchanges), strict=True))
    mixed = random.Random(1).sample(exchanges, len(exchanges))
    assert model.score(mixed).tolist() == [scores[row.row_id] for row in mixed]
    assert len(set(scores.values())) == len(exchanges)


def test_a_text_longer_than_the_model_has_positions_is_cut(encoder):
    score = RewardModel(str(encoder), 4096, 8192).score([exchange("a", "w1 " * 200, "w2 " * 200)])
    assert np.isfinite(score).all()


def test_a_row_that_cannot_be_scored_is_nan_and_the_others_are_scored(encoder):
    model = RewardModel(str(encoder), 64, 512)
    good = exchange("good", "w1", "w2")
    scores = model.score([Exchange("bad", [{"role": "user"}], "w2"), good])
    assert np.isnan(scores[0])
    assert scores[1] == model.score([good])[0]
    assert "row bad" in model.problem


def test_nothing_to_score_gives_nothing(encoder):
    assert RewardModel(str(encoder), 64, 512).score([]).shape == (0,)


def test_an_encoder_without_a_trained_head_is_refused(encoder, tmp_path):
    from transformers import BertModel

    folder = tmp_path / "bare"
    shutil.copytree(encoder, folder)
    BertModel.from_pretrained(encoder).save_pretrained(folder)
    with pytest.raises(InputError, match="not a trained reward model"):
        RewardModel(str(folder), 64, 512)


def test_a_classifier_with_several_outputs_is_refused(encoder, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(encoder, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="3 outputs"):
        RewardModel(str(tmp_path), 64, 512)


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        RewardModel(str(tmp_path), 64, 512)
