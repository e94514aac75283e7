from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.models.batching import token_batches

LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_batch_and_no_batch_is_over_budget(lengths, budget):
    names = [f"r{index:03d}" for index in range(len(lengths))]
    batches = token_batches(lengths, names, budget)
    assert sorted(int(index) for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@given(LENGTHS, st.integers(1, 200), st.randoms())
def test_batches_do_not_depend_on_the_order_of_the_rows(lengths, budget, random):
    rows = [(f"r{index:03d}", length) for index, length in enumerate(lengths)]
    mixed = random.sample(rows, len(rows))

    def named(part):
        batches = token_batches([length for _, length in part], [name for name, _ in part], budget)
        return [[part[index][0] for index in batch] for batch in batches]

    assert named(rows) == named(mixed)


def test_rows_of_like_length_share_a_batch():
    batches = token_batches([9, 2, 8, 2], ["a", "b", "c", "d"], budget=18)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0]]
    assert all(isinstance(batch, np.ndarray) for batch in batches)
