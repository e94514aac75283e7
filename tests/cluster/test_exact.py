from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from divsel_ray.cluster import exact
from divsel_ray.cluster.exact import Grid


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(0, 2.0**100, width=32)), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_exact_sums_are_fractions_sums_rounded_once(values, cut):
    parts = exact.exact_parts(values[cut:]) + exact.exact_parts(values[:cut])
    assert exact.exact_total(parts) == float(sum(map(Fraction, values.tolist()), Fraction(0)))


def test_exact_sums_keep_what_float32_would_lose():
    values = np.array([2.0**60, 1.0, 2.0**-40])
    assert exact.exact_total(exact.exact_parts(values[1:])) == 1 + 2.0**-40
    assert exact.exact_total(exact.exact_parts(np.array([1 + 2.0**-40]))) == 1 + 2.0**-40


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_sums_on_the_grid_are_the_same_in_any_order(rows, random):
    on_grid = Grid.of(len(rows), float(np.abs(rows).max())).round(torch.from_numpy(rows)).numpy()
    order = list(range(len(rows)))
    random.shuffle(order)
    one, other = np.zeros(3), np.zeros(3)
    for i in range(len(rows)):
        one += on_grid[i]
        other += on_grid[order[i]]
    assert one.tolist() == other.tolist()
    assert one.tolist() == [float(sum(map(Fraction, column.tolist()))) for column in on_grid.T]


def test_the_grid_is_finer_than_a_centroid_can_show():
    rows = torch.rand(1000, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    error = (Grid.of(1_000_000, 1.0).round(rows) - rows.double()).abs().max()
    assert 0 < error <= 2.0**-32


def test_float16_rows_are_on_the_grid_already():
    rows = torch.tensor([[6e-8, -65504.0], [0.1, 3.14159]], dtype=torch.float16)
    assert (Grid.of(2000, 65504.0).round(rows) == rows.double()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_digest_is_the_same_for_any_partition_and_another_for_any_other_rows(dtype):
    rows, numbers = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).to(dtype), np.arange(50)
    whole = exact.digest(rows, numbers)
    assert (exact.digest(rows[:13], numbers[:13]) + exact.digest(rows[13:], numbers[13:])) % 2**64 == whole
    changed = rows.clone()
    changed[49, 6] = -changed[49, 6]
    others = (-rows, rows.flip(0), rows.flip(1), changed)
    assert len({whole, *(exact.digest(other, numbers) for other in others)}) == 5


def test_mixed_words_are_those_of_splitmix64():
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert exact.mix(states).tolist() == published
