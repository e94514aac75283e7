"""QDIT: coverage and quality on one scale."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select import facility
from divsel_ray.select.facility import Coverage
from divsel_ray.select.graph import neighbour_graph
from divsel_ray.select.qdit import SAMPLER
from divsel_ray.select.quality import ranked_quality
from tests.select.pools import NONE, check_contract, odd_pools, pool, random_pool, same_whatever_the_threads, unit


def naive(candidates, neighbours, share, count):
    """Plain greedy, every gain worked out at every step."""
    coverage = Coverage(neighbour_graph(candidates.vectors, candidates.cluster, neighbours))
    quality, largest, index, gain = ranked_quality(candidates), coverage.gains().max(), [], []
    for _ in range(count):
        gains = (1 - share) * (coverage.gains() / largest) + share * quality
        gains[index] = -1
        index.append(int(gains.argmax()))
        gain.append(gains[index[-1]])
        coverage.add(index[-1])
    return index, gain


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.integers(1, 25), st.floats(0, 1), st.data())
def test_contract(candidates, neighbours, share, data):
    check_contract(SAMPLER, candidates, SelectConfig(neighbours=neighbours, quality_share=share), data)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_lazy_greedy_is_greedy(share):
    candidates = random_pool(200)
    picks = SAMPLER.choose(candidates, NONE, 50, SelectConfig(neighbours=10, quality_share=share), 0)
    assert (picks.index.tolist(), picks.gain.tolist()) == naive(candidates, 10, share, 50)


def test_quality_alone_takes_the_best_rows_and_none_of_it_is_facility_location():
    candidates = random_pool(100)
    best = SAMPLER.choose(candidates, NONE, 10, SelectConfig(quality_share=1), 0).index
    assert best.tolist() == np.argsort(-ranked_quality(candidates), kind="stable")[:10].tolist()
    config = SelectConfig(quality_share=0)
    widest = SAMPLER.choose(candidates, NONE, 10, config, 0).index
    assert widest.tolist() == facility.SAMPLER.choose(candidates, NONE, 10, config, 0).index.tolist()


def test_without_quality_it_is_facility_location():
    candidates = random_pool(100)
    blank = pool(candidates.vectors, candidates.cluster)
    chosen = SAMPLER.choose(blank, NONE, 20, SelectConfig(), 0).index
    assert chosen.tolist() == facility.SAMPLER.choose(blank, NONE, 20, SelectConfig(), 0).index.tolist()


def test_gains_by_hand():
    # Coverage alone: row 0 adds itself and its equal (2 rows), row 2 adds 1; in units of the largest, 1 and 0.5.
    # Quality by rank of three: 1/3, 2/3, 3/3. With a = 0.5, row 1 leads with 0.5 + 0.5 x 2/3.
    candidates = pool(unit([[1, 0], [1, 0], [0, 1]]), quality=[-5, 0, 100])
    picks = SAMPLER.choose(candidates, NONE, 3, SelectConfig(quality_share=0.5), 0)
    assert picks.index.tolist() == [1, 2, 0]
    assert picks.gain == pytest.approx([0.5 + 1 / 3, 0.5 * 0.5 + 0.5, 1 / 6])


def test_ranks_share_ties_and_missing_ones_count_as_their_cluster():
    candidates = pool(unit(np.ones((5, 2))), cluster=[0, 0, 0, 1, 1], quality=[1, 3, np.nan, 3, 9])
    # Values 1, 3, 2, 3, 9: ranks 1, 3.5, 2, 3.5, 5 of 5.
    assert ranked_quality(candidates).tolist() == [0.2, 0.7, 0.4, 0.7, 1.0]
    assert ranked_quality(pool(unit(np.ones((2, 2))))).tolist() == [1, 1]


def test_the_threads_do_not_matter():
    assert same_whatever_the_threads(SAMPLER, random_pool(400, d=96), 80, SelectConfig(neighbours=20, quality_share=0.3))
