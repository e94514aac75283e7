from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.score.preferences import KINDS, make_comparisons, shuffled, truncated
from divsel_ray.score.scorer import Exchange

TEXTS = st.text(alphabet="ab .!\n", min_size=0, max_size=80)


def pool(size: int) -> list[Exchange]:
    return [
        Exchange(f"r{i:02d}", [{"role": "user", "content": f"p{i}"}], " ".join(f"c{i}x{j}" for j in range(12)))
        for i in range(size)
    ]


def test_every_prompt_is_compared_with_three_spoiled_completions():
    for comparison in make_comparisons(pool(9), seed=0):
        own = comparison.chosen
        assert tuple(comparison.rejected) == KINDS
        assert all(rejected.messages == own.messages for rejected in comparison.rejected.values())
        assert own.completion.startswith(comparison.rejected["truncated"].completion)
        assert sorted(comparison.rejected["shuffled"].completion.split()) == sorted(own.completion.split())


def test_every_completion_is_another_prompts_exactly_once():
    comparisons = make_comparisons(pool(9), seed=0)
    others = [comparison.rejected["other_prompt"].completion for comparison in comparisons]
    assert sorted(others) == sorted(comparison.chosen.completion for comparison in comparisons)
    assert all(other != comparison.chosen.completion for other, comparison in zip(others, comparisons, strict=True))


def test_comparisons_do_not_depend_on_the_order_of_the_rows_but_on_the_seed():
    rows = pool(20)
    mixed = random.Random(5).sample(rows, len(rows))
    assert make_comparisons(mixed, seed=1) == make_comparisons(rows, seed=1)
    assert make_comparisons(rows, seed=2) != make_comparisons(rows, seed=1)


def test_a_completion_that_cannot_be_spoiled_in_some_way_has_no_pair_of_that_kind():
    rows = [Exchange("a", [], "one"), Exchange("b", [], "two three four five")]
    first = make_comparisons(rows, seed=0)[0]
    assert set(first.rejected) == {"other_prompt"}


@given(st.integers(2, 60), st.integers(0, 1000))
def test_a_truncated_text_keeps_20_to_70_percent_of_its_words(count, seed):
    words = [f"w{index}" for index in range(count)]
    kept = truncated(" ".join(words), np.random.default_rng(seed)).split()
    assert kept == words[: len(kept)]
    assert max(1, int(0.2 * count)) <= len(kept) <= max(1, int(0.7 * count))


@given(TEXTS, st.integers(0, 1000))
def test_a_shuffled_text_keeps_its_words_and_its_layout(text, seed):
    mixed = shuffled(text, np.random.default_rng(seed))
    assert sorted(mixed.split()) == sorted(text.split())
    assert (
        "".join(c for c in mixed if c.isspace()) == "".join(c for c in text.strip() if c.isspace())
        or text.count(".") + text.count("!") > 0
    )


def test_sentences_stay_whole_in_about_half_of_the_shuffled_texts():
    text = "a b c. d e f. g h i. j k l. m n o."
    sentences = set(text.replace(".", ".|").replace("| ", "|").strip("|").split("|"))
    whole = [set(shuffled(text, np.random.default_rng(seed)).replace(". ", ".|").split("|")) == sentences for seed in range(60)]
    assert 15 <= sum(whole) <= 45
