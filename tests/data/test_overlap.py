from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.data.overlap import BenchmarkIndex, Overlap, build_index, find_overlap, texts_of
from divsel_ray.data.words import WordHasher


def found(benchmarks, texts, ngram):
    hasher = WordHasher()
    return find_overlap(build_index(benchmarks, ngram), [hasher(text) for text in texts])


def test_a_shared_run_of_words_is_found_whatever_its_case_and_punctuation():
    benchmark = {"question": "What is the capital of France, my friend?"}
    assert found([{"q": "Other words are here"}, benchmark], ["x", "so: CAPITAL of france... My Friend"], 5) == Overlap(5, 1)
    assert found([benchmark], ["the capital of Spain, my friend"], 5) is None


def test_a_run_does_not_go_from_the_prompt_to_the_completion():
    assert found(["a b c d"], ["x a b", "c d y"], 4) is None
    assert found(["a b c d"], ["x a b c d", "y"], 4) == Overlap(4, 0)


@pytest.mark.parametrize(
    ("text", "pool", "expected"),
    [
        ("a b c", "x a b c y", Overlap(3, 0)),
        ("a b c", "a b x c", None),
        ("a b", "a b", None),
        ("a b c d e f", "a b c d e", None),
    ],
)
def test_a_shorter_benchmark_text_must_be_held_whole_and_have_half_as_many_words(text, pool, expected):
    assert found([text], [pool], 6) == expected


def test_of_a_run_in_two_benchmark_rows_the_first_is_named_and_long_runs_come_first():
    assert found(["x y z", "a b c", "a b c"], ["a b c"], 3) == Overlap(3, 1)
    assert found(["a b", "c d e f"], ["a b", "c d e f"], 4) == Overlap(4, 1)


def test_texts_are_found_at_any_depth():
    row = {"q": "one", "choices": {"text": ["two", "three"], "label": [1, None]}, "list": [{"a": "four"}], "n": 3}
    assert list(texts_of(row)) == ["one", "two", "three", "four"]


def test_no_benchmark_text_overlaps_nothing():
    assert found([], ["a b c"], 2) is None
    assert found([{"answer": 7}], ["", "a b c"], 2) is None


@given(st.lists(st.text("ab ", max_size=12), max_size=4), st.text("ab ", max_size=12), st.integers(1, 4))
def test_overlaps_are_those_a_search_of_word_lists_finds(benchmarks, pool, ngram):
    def runs(words, length):
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    words = [text.split() for text in benchmarks]
    lengths = [min(ngram, len(w)) for w in words]
    expected = any(
        length >= max(1, ngram // 2) and runs(w, length) & runs(pool.split(), length)
        for w, length in zip(words, lengths, strict=True)
    )
    assert (found(benchmarks, [pool], ngram) is not None) == bool(expected)


def test_an_index_is_ascending_and_distinct():
    index = build_index(["a b c a b c", "c a b"], 3)
    assert isinstance(index, BenchmarkIndex)
    assert index.lengths == (3,)
    assert np.all(np.diff(index.hashes.astype(object)) > 0)
    assert len(index.hashes) == 3
    assert set(index.row) == {0}
