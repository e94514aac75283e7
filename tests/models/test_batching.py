"""Token batches: every item once, within the budget, the same from any order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.models.batching import token_batches

lengths = st.lists(st.integers(0, 300), max_size=60)


@given(lengths, st.integers(1, 1000))
def test_every_item_is_in_one_batch_within_the_budget(lengths, budget):
    batches = token_batches(lengths, [f"{i:04d}" for i in range(len(lengths))], budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths, st.randoms())
def test_batches_do_not_depend_on_the_order_of_items(lengths, random):
    keys = [f"{i:04d}" for i in range(len(lengths))]
    order = list(range(len(lengths)))
    random.shuffle(order)
    plain = [{keys[i] for i in batch} for batch in token_batches(lengths, keys, 256)]
    shuffled = token_batches([lengths[i] for i in order], [keys[i] for i in order], 256)
    assert [{keys[order[i]] for i in np.asarray(batch)} for batch in shuffled] == plain
