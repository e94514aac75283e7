"""Candidates for tests, and what every greedy sampler must do with them."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.sampler import Candidates, Greedy, Picks

NONE = np.empty(0, np.int64)


def unit(vectors) -> np.ndarray:
    """Rows of length 1, float32."""
    vectors = np.asarray(vectors, float)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def pool(vectors, cluster=None, quality=None) -> Candidates:
    n = len(vectors)
    row_ids = np.sort(np.array([hashlib.md5(str(i).encode()).hexdigest() for i in range(n)], dtype="S32"))
    cluster = np.zeros(n, int) if cluster is None else np.asarray(cluster)
    quality = np.full(n, np.nan) if quality is None else np.asarray(quality, float)
    return Candidates(row_ids, cluster, quality, int(cluster.max(initial=0)) + 1, vectors=np.asarray(vectors))


def random_pool(n: int, d: int = 8, k: int = 5, seed: int = 0) -> Candidates:
    """Rows around a few directions, a fifth of them twice, qualities with ties and gaps."""
    generator = np.random.default_rng(seed)
    cluster = generator.integers(0, k, n)
    vectors = generator.normal(size=(k, d))[cluster] + 0.6 * generator.normal(size=(n, d))
    vectors[: n // 5] = vectors[n // 5 : 2 * (n // 5)]
    quality = np.round(generator.normal(size=n), 1)
    quality[::7] = np.nan
    return pool(unit(vectors), cluster, quality)


@st.composite
def odd_pools(draw, largest: int = 20) -> Candidates:
    """Few rows, few directions (so many are equal), empty clusters, scores that are missing, equal, infinite or huge."""
    n, d = draw(st.integers(0, largest)), draw(st.integers(1, 3))
    entries = draw(st.lists(st.integers(-1, 1), min_size=n * d, max_size=n * d))
    vectors = np.array(entries, float).reshape(n, d)
    vectors[~vectors.any(axis=1), 0] = 1
    cluster = np.array(draw(st.lists(st.integers(0, draw(st.integers(0, 4))), min_size=n, max_size=n)), int)
    scores = draw(st.sampled_from([[np.nan], [2.0], [0.0, 1.0, np.nan], [1e300, -1e300, np.inf, np.nan, 0.5]]))
    quality = draw(st.lists(st.sampled_from(scores), min_size=n, max_size=n))
    return pool(unit(vectors).reshape(n, d).astype(draw(st.sampled_from([np.float16, np.float32]))), cluster, quality)


def check_contract(sampler: Greedy, candidates: Candidates, config: SelectConfig, data: st.DataObject) -> Picks:
    """Exactly `count` rows, none twice, none taken, the same again; a choice in two steps is that in one."""
    n = len(candidates)
    order = data.draw(st.permutations(range(n)))
    taken = np.array(order[: data.draw(st.integers(0, n))], np.int64)
    count = data.draw(st.integers(0, n - len(taken)))
    picks = sampler.choose(candidates, taken, count, config, 3)
    chosen = picks.index.tolist()
    assert len(chosen) == len(picks.gain) == count
    assert picks.gain.dtype == np.float64
    assert len(set(chosen)) == count
    assert not set(chosen) & set(taken.tolist())
    first = data.draw(st.integers(0, count))
    small = sampler.choose(candidates, taken, first, config, 3)
    assert small.index.tolist() == chosen[:first]
    np.testing.assert_array_equal(small.gain, picks.gain[:first])
    rest = sampler.choose(candidates, np.concatenate([taken, small.index])[::-1], count - first, config, 3)
    assert rest.index.tolist() == chosen[first:]
    assert sampler.memory(n, candidates.vectors.shape[1], candidates.k, count, config) > 0
    return picks


def same_whatever_the_threads(sampler: Greedy, candidates: Candidates, count: int, config: SelectConfig) -> bool:
    """Whether one thread and two choose the same, to the last bit of the gains."""
    import torch

    before, runs = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs.append(sampler.choose(candidates, NONE, count, config, 0))
    torch.set_num_threads(before)
    return bool((runs[0].index == runs[1].index).all() and runs[0].gain.tobytes() == runs[1].gain.tobytes())
