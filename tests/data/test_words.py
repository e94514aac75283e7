from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.data.words import WordHasher, join_words, run_hashes, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3 pm.", ["it", "s", "3", "pm"]),
        ("  GRÜSSE,\nWelt_1! ", ["grüsse", "welt_1"]),
        ("今日は good 晴れ", ["今", "日", "は", "good", "晴", "れ"]),
        ("ＡＢＣ e\u0301t\u00e9", ["abc", "été"]),
        ("Привет мир", ["привет", "мир"]),
        ("... !?", []),
    ],
)
def test_a_text_is_split_into_lower_case_words(text, words):
    assert split_words(text) == words


def test_equal_words_have_equal_hashes_in_every_process():
    program = "from divsel_ray.data.words import WordHasher; print(WordHasher()('b a b').tolist())"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    b, a, b_again = WordHasher()("b a b").tolist()
    assert b == b_again != a
    assert there.strip() == str([b, a, b])


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8), st.integers(1, 4))
def test_runs_have_equal_hashes_just_when_their_words_are_equal(left, right, length):
    hasher = WordHasher()

    def runs(words):
        return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]

    hashes = run_hashes(hasher(" ".join(left)), length), run_hashes(hasher(" ".join(right)), length)
    assert [len(h) for h in hashes] == [len(runs(left)), len(runs(right))]
    equal = [[a == b for b in runs(right)] for a in runs(left)]
    assert (hashes[0][:, None] == hashes[1][None, :]).tolist() == equal


def test_runs_of_different_lengths_differ():
    words = np.zeros(3, dtype=np.uint64)
    assert len({int(run_hashes(words, length)[0]) for length in (1, 2, 3)}) == 3


def test_texts_are_joined_in_order():
    hasher = WordHasher()
    assert join_words([hasher("a b"), hasher(""), hasher("c")]).tolist() == hasher("a b c").tolist()
    assert join_words([]).tolist() == []
