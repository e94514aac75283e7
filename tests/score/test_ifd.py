from __future__ import annotations

import random

import numpy as np
import pytest

from divsel_ray.score.ifd import InstructionFollowingDifficulty
from divsel_ray.score.scorer import Exchange


def exchange(row_id: str, prompt: str, completion: str) -> Exchange:
    return Exchange(row_id, [{"role": "user", "content": prompt}], completion)


def mean_loss(folder, context: list[int], completion: list[int]) -> float:
    """Negative log-likelihood of the completion's tokens, one forward pass, straight from the definition."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + completion])).logits[0]
    places = range(len(context) - 1, len(context) + len(completion) - 1)
    log_probabilities = torch.log_softmax(logits.double(), dim=-1)
    return -float(np.mean([log_probabilities[place, token].item() for place, token in zip(places, completion, strict=True)]))


def direct_ifd(folder, tokenizer, row: Exchange) -> float:
    # [UNK] because "User:" and "Assistant:" are no words of the toy vocabulary
    prompt = [4, 1, *tokenizer(row.messages[0]["content"], add_special_tokens=False).input_ids, 1]
    completion = [*tokenizer(row.completion, add_special_tokens=False).input_ids, 5]
    return float(np.exp(mean_loss(folder, prompt, completion) - mean_loss(folder, [4], completion)))


def test_ifd_is_the_ratio_of_the_perplexities_with_and_without_the_prompt(language_model, chat_tokenizer):
    rows = [exchange("a", "w1 w2 w3", "w4 w5"), exchange("b", "w6", "w7 w8 w9 w1"), exchange("c", "w2 w2 w2 w2 w2", "w3")]
    scores = InstructionFollowingDifficulty(str(language_model), 64, 512).score(rows)
    assert scores == pytest.approx([direct_ifd(language_model, chat_tokenizer, row) for row in rows], rel=1e-4)
    assert len(set(np.round(scores, 3))) == 3


def test_losses_are_the_same_when_the_model_changes_its_logits_after_the_last_layer(
    tmp_path, chat_tokenizer, save_language_tokenizer
):
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(
        **sizes,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    save_language_tokenizer(tmp_path)
    row = exchange("a", "w1 w2 w3", "w4 w5 w6")
    score = InstructionFollowingDifficulty(str(tmp_path), 64, 512).score([row])
    assert score == pytest.approx([direct_ifd(tmp_path, chat_tokenizer, row)], rel=1e-4)


def test_scores_do_not_depend_on_the_order_bit_for_bit(language_model, exchanges):
    model = InstructionFollowingDifficulty(str(language_model), 64, 100)
    scores = dict(zip((row.row_id for row in exchanges), model.score(exchanges), strict=True))
    mixed = random.Random(1).sample(exchanges, len(exchanges))
    assert model.score(mixed).tolist() == [scores[row.row_id] for row in mixed]


def test_a_long_exchange_is_cut_to_the_end_of_the_prompt_and_the_start_of_the_completion(language_model):
    model = InstructionFollowingDifficulty(str(language_model), 16, 512)
    long = exchange("a", "w9 " * 30 + "w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4 w5 w6 w7 w8 " + "w9 " * 30)
    other = exchange("b", "w8 " * 50 + "w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4 w5 w6 w7 w8 " + "w7 " * 30)
    first, second = model.score([long]), model.score([other])
    assert np.isfinite(first).all()
    assert first == pytest.approx(second, rel=1e-6)


def test_a_row_that_cannot_be_encoded_is_nan_and_the_others_are_scored(language_model):
    model = InstructionFollowingDifficulty(str(language_model), 64, 512)
    good = exchange("good", "w1", "w2")
    scores = model.score([good, Exchange("bad", [{"role": "user"}], "w2")])
    assert scores[0] == model.score([good])[0]
    assert np.isnan(scores[1])
    assert "row bad" in model.problem


def test_the_logits_are_made_in_pieces_without_changing_the_result(language_model, exchanges, monkeypatch):
    from divsel_ray.score import language_model as module

    model = InstructionFollowingDifficulty(str(language_model), 64, 512)
    whole = model.score(exchanges)
    monkeypatch.setattr(module, "_LOGIT_ROWS", 3)
    assert model.score(exchanges) == pytest.approx(whole, rel=1e-5)
