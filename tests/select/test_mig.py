"""MIG: information over a graph of clusters."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.mig import SAMPLER, Information, Spread
from divsel_ray.select.quality import ranked_quality
from tests.select.pools import NONE, check_contract, odd_pools, pool, random_pool, same_whatever_the_threads, unit


def naive(candidates, taken, count, concavity):
    """Plain greedy over all rows, every gain worked out at every step."""
    information, index, gain = Information(candidates, taken, concavity), [], []
    free = sorted(set(range(len(candidates))) - set(taken.tolist()))
    for _ in range(count):
        gains = [information.gain(row) for row in free]
        best = int(np.argmax(gains))
        index.append(free.pop(best))
        gain.append(gains[best])
        information._receive(index[-1])
    return index, gain


@settings(max_examples=60, deadline=None)
@given(odd_pools(), st.sampled_from([0.1, 0.5, 0.8, 0.99]), st.data())
def test_contract(candidates, concavity, data):
    picks = check_contract(SAMPLER, candidates, SelectConfig(concavity=concavity), data)
    assert (np.diff(picks.gain) <= 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(odd_pools(), st.data())
def test_contenders_alone_are_enough(candidates, data):
    n = len(candidates)
    taken = np.array(data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, n))], np.int64)
    picks = SAMPLER.choose(candidates, taken, n - len(taken), SelectConfig(), 0)
    assert (picks.index.tolist(), picks.gain.tolist()) == naive(candidates, taken, n - len(taken), 0.8)


def test_lazy_greedy_is_greedy_on_many_rows():
    candidates = random_pool(300, d=3, k=20)
    assert max(map(len, Spread(candidates).clusters)) > 1
    picks = SAMPLER.choose(candidates, np.array([5, 9]), 150, SelectConfig(), 0)
    assert (picks.index.tolist(), picks.gain.tolist()) == naive(candidates, np.array([5, 9]), 150, 0.8)


def test_gains_by_hand_where_nothing_spreads():
    # Quality by rank: 1, 3/4, 1/2 in cluster 0 and 1/4 in cluster 1, square roots for information.
    candidates = pool(unit([[1, 0], [1, 0], [1, 0], [0, 1]]), cluster=[0, 0, 0, 1], quality=[9, 8, 7, 1])
    picks = SAMPLER.choose(candidates, NONE, 4, SelectConfig(concavity=0.5), 0)
    assert picks.index.tolist() == [0, 3, 1, 2]
    expected = [1, 0.5, np.sqrt(1.75) - 1, np.sqrt(2.25) - np.sqrt(1.75)]
    assert picks.gain == pytest.approx(expected, abs=1e-9)


def test_a_cluster_shares_with_those_alike():
    # Means at cosine 0.8 share in proportion 1 : 0.8; the third is at right angles to one and at 0.6 to the other.
    candidates = pool(unit([[1, 0], [4, 3], [-0.1, 1]]), cluster=[0, 2, 3])
    spread = Spread(candidates)
    assert [clusters.tolist() for clusters in spread.clusters] == [[0, 2], [1], [0, 2], [3]]
    assert spread.shares[0] == pytest.approx([1 / 1.8, 0.8 / 1.8], abs=1e-3)
    assert all(shares.sum() == pytest.approx(1) for shares in spread.shares)


def test_after_a_cluster_those_alike_have_less_to_add():
    candidates = pool(unit([[1, 0, 0], [4, 3, 0], [0, 0, 1]]), cluster=[0, 1, 2])
    picks = SAMPLER.choose(candidates, NONE, 3, SelectConfig(), 0)
    # Two clusters that share have more to gain at first; then the one apart comes before the one alike.
    assert picks.index.tolist() == [0, 2, 1]


def test_without_vectors_nothing_spreads():
    candidates = dataclasses.replace(random_pool(60, d=2, k=6), vectors=None)
    assert all(clusters.tolist() == [number] for number, clusters in enumerate(Spread(candidates).clusters))
    picks = SAMPLER.choose(candidates, NONE, 60, SelectConfig(), 0)
    assert picks.index.tolist() == naive(candidates, NONE, 60, 0.8)[0]


def test_in_a_cluster_better_rows_come_first():
    candidates = random_pool(120)
    picks, quality = SAMPLER.choose(candidates, NONE, 120, SelectConfig(), 0), ranked_quality(candidates)
    for cluster in range(candidates.k):
        rows = picks.index[candidates.cluster[picks.index] == cluster]
        assert (np.diff(quality[rows]) <= 0).all()


def test_the_threads_do_not_matter():
    assert same_whatever_the_threads(SAMPLER, random_pool(400, d=96, k=40), 80, SelectConfig())
