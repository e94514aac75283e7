"""Pools that samplers draw from in tests, and the draw itself."""

from __future__ import annotations

import numpy as np

from divsel_ray.config import SelectConfig
from divsel_ray.select.draw import Demand, Draw, draw
from divsel_ray.select.sampler import Candidates


def row_ids(n: int, seed: int = 0) -> np.ndarray:
    """n row ids, ascending."""
    generator = np.random.default_rng(seed)
    return np.sort(np.array([generator.bytes(16).hex() for _ in range(n)], dtype="S32"))


def candidates(cluster, quality=None, seed: int = 0, k: int | None = None, dimension: int = 8) -> Candidates:
    """Rows with these clusters, and vectors that lie around their cluster's axis."""
    cluster = np.asarray(cluster, dtype=np.int32)
    n = len(cluster)
    k = int(cluster.max(initial=0)) + 1 if k is None else k
    quality = np.full(n, np.nan) if quality is None else np.asarray(quality, dtype=float)
    generator = np.random.default_rng(seed + 1)
    vectors = 0.4 * generator.normal(size=(n, dimension))
    vectors[np.arange(n), cluster % dimension] += 1.0
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    distance = generator.random(n).astype(np.float32)
    return Candidates(row_ids(n, seed), cluster, quality, k, distance, vectors.astype(np.float16))


def drawn(pool: Candidates, budgets, config: SelectConfig | None = None, seed: int = 0, taken=(), **demand) -> Draw:
    """A draw of so many rows, or of nested budgets."""
    budgets = [budgets] if isinstance(budgets, int) else list(budgets)
    return draw(pool, np.array(taken, np.int64), Demand(budgets, **demand), config or SelectConfig(), seed)
