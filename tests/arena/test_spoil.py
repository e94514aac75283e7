"""Faults: who gets one depends on seed and row id alone, and each leaves what its name says."""

import hashlib

import pytest

from divsel_ray.arena.spoil import faults_of, spoil
from divsel_ray.config.arena import SpoilConfig

IDS = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(20_000)]


def test_the_share_and_the_kinds_are_as_asked():
    faults = faults_of(IDS, SpoilConfig(share=0.15), seed=0)
    hit = [fault for fault in faults if fault]
    assert len(hit) / len(IDS) == pytest.approx(0.15, abs=0.01)
    for kind in ("other", "truncated", "shuffled"):
        assert hit.count(kind) / len(hit) == pytest.approx(1 / 3, abs=0.04)


def test_a_rows_fault_does_not_depend_on_the_rows_beside_it():
    config = SpoilConfig(share=0.5)
    whole = faults_of(IDS[:100], config, seed=3)
    assert faults_of(IDS[40:60][::-1], config, seed=3) == whole[40:60][::-1]
    assert faults_of(IDS[:100], config, seed=4) != whole


def test_a_truncated_completion_is_the_first_half_of_its_words():
    assert spoil(["one two three four five"], IDS[:1], ["truncated"], seed=0) == [("one two", "truncated")]


def test_a_shuffled_completion_has_the_same_words_in_another_order():
    [(text, fault)] = spoil(["one two three four five six"], IDS[:1], ["shuffled"], seed=0)
    assert fault == "shuffled"
    assert text != "one two three four five six"
    assert sorted(text.split()) == sorted(["one", "two", "three", "four", "five", "six"])


def test_another_rows_completion_is_never_the_same_text():
    texts = ["yes", "no", "yes", "yes"]
    found = spoil(texts, IDS[:4], ["other", None, "other", None], seed=0)
    assert found == [("no", "other"), ("no", ""), ("no", "other"), ("yes", "")]


def test_one_word_cannot_be_cut_or_shuffled_and_gets_another_rows():
    assert spoil(["yes", "no"], IDS[:2], ["truncated", "shuffled"], seed=0) == [("no", "other"), ("yes", "other")]


def test_words_that_are_all_the_same_cannot_be_shuffled():
    assert spoil(["well well well", "no"], IDS[:2], ["shuffled", None], seed=0) == [("no", "other"), ("no", "")]


def test_a_text_that_differs_in_the_white_space_around_it_is_the_same():
    assert spoil(["yes", " yes\n"], IDS[:2], ["other", None], seed=0) == [("yes", ""), (" yes\n", "")]


def test_a_row_that_no_other_differs_from_stays_as_it_is_and_is_not_flagged():
    assert spoil(["yes", "yes"], IDS[:2], ["other", None], seed=0) == [("yes", ""), ("yes", "")]
