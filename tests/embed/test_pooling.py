"""Chunking and pooling of long texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.embed.pooling import normalise, pool_chunks, split_tokens


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 20), st.integers(1, 50))
def test_chunks_hold_the_first_tokens_once_and_in_order(ids, window, max_tokens):
    chunks = split_tokens(ids, window, max_tokens)
    assert [token for chunk in chunks for token in chunk] == ids[:max_tokens]
    assert all(len(chunk) <= window for chunk in chunks)
    assert len(chunks) >= 1


@given(st.lists(st.integers(0, 500), min_size=1, max_size=10))
def test_pooling_all_ones_gives_ones_for_any_lengths(counts):
    vectors = np.ones((len(counts), 3))
    pooled = pool_chunks(vectors, np.array(counts), np.zeros(len(counts), dtype=int), rows=1)
    assert pooled == pytest.approx(np.ones((1, 3)))


def test_chunks_count_by_their_tokens():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    pooled = pool_chunks(vectors, np.array([30, 10, 7]), np.array([0, 0, 1]), rows=2)
    assert pooled == pytest.approx(np.array([[0.75, 0.25], [5.0, 5.0]]))


def test_normalising_keeps_zero_rows_at_zero():
    assert normalise(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
