"""Drawing a round's rows: one Ray task reads ids, clusters and quality and writes only what was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.config import SelectConfig
from divsel_ray.data.hashing import uniform_hash
from divsel_ray.errors import InputError
from divsel_ray.select.allocation import allocate_round, allocation_weights
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates
from divsel_ray.store import atomic_path

VERSION = 1


@dataclass(frozen=True)
class DrawPlan:
    """What one round draws.

    Attributes:
        config: the sampler and its settings.
        seed: of the draw; the same in every round, which makes rounds extend one another.
        budget: rows of the whole job.
        round_size: rows of this round.
        held_out: rows kept out of every round, where the pool has them to spare.
        drawn: (k,) rows drawn per cluster in earlier rounds, or None in the first.
        weights: (k,) cluster weights, or None for `config.allocation` of the cluster sizes.
        targets: (k,) targets accumulated over earlier rounds, or None in the first.
    """

    config: SelectConfig
    seed: int
    budget: int
    round_size: int
    held_out: int = 0
    drawn: list[int] | None = None
    weights: list[float] | None = None
    targets: list[float] | None = None


def draw_round(cluster_files: list[str], quality_files: list[str], k: int, plan: DrawPlan, folder: Path) -> dict[str, Any]:
    """Write `selected.parquet` (all rows so far: row_id, cluster, quality, weight, new) and `held_out.parquet` (row_id).

    Args:
        cluster_files: Parquet with row_id, cluster, distance.
        quality_files: Parquet with row_id, quality, same names and rows; empty for no quality.
        k: number of clusters.
        plan: what to draw.
        folder: where to write.

    Returns:
        {"rows", "new", "drawn": (k,), "targets": (k,), "weights": (k,), "missing_quality"}.

    Raises:
        InputError: the pool is smaller than the budget.
    """
    pool = sum(pq.read_metadata(file).num_rows for file in cluster_files)
    if pool < plan.budget:
        raise InputError(
            f"budget {plan.budget} exceeds the pool's {pool} rows; lower it, or allow fewer (--allow-fewer, allow_fewer: true)"
        )
    task = ray.remote(num_cpus=1)(_draw).remote(cluster_files, quality_files, k, plan, str(folder))
    return ray.get(task)


def _draw(cluster_files: list[str], quality_files: list[str], k: int, plan: DrawPlan, folder: str) -> dict[str, Any]:
    row_ids, cluster, quality = _read(cluster_files, quality_files)
    held_out = _held_out(row_ids, min(plan.held_out, len(row_ids) - plan.budget), plan.seed)
    free = ~held_out
    candidates = Candidates(row_ids[free], cluster[free], quality[free], k)
    sizes = candidates.sizes
    drawn = np.zeros(k, np.int64) if plan.drawn is None else np.array(plan.drawn)
    weights = allocation_weights(sizes, plan.config.allocation) if plan.weights is None else np.array(plan.weights)
    targets = plan.round_size * weights + (0 if plan.targets is None else np.array(plan.targets))
    counts = drawn + allocate_round(targets, drawn, sizes, plan.round_size)
    sampler = SAMPLERS[plan.config.sampler]
    draw = sampler(candidates, counts, plan.config, plan.seed)
    earlier = sampler(candidates, drawn, plan.config, plan.seed).index
    _write(Path(folder), candidates, draw.index, draw.weight, ~np.isin(draw.index, earlier), row_ids[held_out])
    return {
        "rows": len(draw.index),
        "new": plan.round_size,
        "drawn": counts.tolist(),
        "targets": targets.tolist(),
        "weights": weights.tolist(),
        "missing_quality": int(np.isnan(candidates.quality).sum()) if quality_files else 0,
    }


def _read(cluster_files: list[str], quality_files: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row ids, clusters and quality (joined by row id, never by position) of the whole pool, sorted by row id."""
    clusters = pa.concat_tables([pq.read_table(file, columns=["row_id", "cluster"]) for file in cluster_files])
    clusters = clusters.sort_by("row_id")
    row_ids = clusters["row_id"].to_numpy().astype("S32")
    if not quality_files:
        return row_ids, clusters["cluster"].to_numpy(), np.full(len(row_ids), np.nan)
    scores = pa.concat_tables([pq.read_table(file, columns=["row_id", "quality"]) for file in quality_files]).sort_by("row_id")
    at = np.searchsorted(row_ids, scores["row_id"].to_numpy().astype("S32"))
    quality = np.full(len(row_ids), np.nan)
    quality[at] = scores["quality"].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return row_ids, clusters["cluster"].to_numpy(), quality


def _held_out(row_ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    mask = np.zeros(len(row_ids), bool)
    mask[np.lexsort((row_ids, uniform_hash(seed, "held-out", row_ids)))[: max(count, 0)]] = True
    return mask


def _write(
    folder: Path, candidates: Candidates, index: np.ndarray, weight: np.ndarray, new: np.ndarray, held_out: np.ndarray
) -> None:
    selected = pa.table(
        {
            "row_id": candidates.row_ids[index].astype("U32"),
            "cluster": candidates.cluster[index].astype(np.int32),
            "quality": pa.array(candidates.quality[index], from_pandas=True),
            "weight": weight,
            "new": new,
        }
    )
    for name, table in {"selected": selected, "held_out": pa.table({"row_id": held_out.astype("U32")})}.items():
        with atomic_path(folder / f"{name}.parquet") as path:
            pq.write_table(table, path)
