"""Drawing a round's rows: one Ray task reads what the sampler needs and writes only the drawn rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divsel_ray.errors import InputError
from divsel_ray.select.allocation import allocation_weights
from divsel_ray.select.draw import Demand, Draw, draw
from divsel_ray.select.plan import DrawFiles, DrawPlan
from divsel_ray.select.pool_rows import DrawPart, PoolRows
from divsel_ray.select.sampler import Greedy
from divsel_ray.store import write_table
from divsel_ray.tasks import run_task


def draw_round(files: DrawFiles, k: int, plan: DrawPlan, folder: Path, memory: float = math.inf) -> dict[str, Any]:
    """Write `selected.parquet`, `held_out.parquet` (row_id) and, if the plan calls for them, the files below.

    `selected.parquet` contains all rows selected so far, by row id: row_id, cluster, quality, weight, new, budget (the
    smallest that contains the row) and why. With nested budgets, `nested.parquet` contains row_id, weight and why of each
    smaller selection, and its budget as `of`. With a probe, `probe.parquet` contains row_id and cluster.

    Args:
        files: files to read.
        k: number of clusters.
        plan: what to draw.
        folder: folder to write to.
        memory: bytes available for vectors and the sampler.

    Returns:
        {"rows", "new", "tokens" (for token budgets), "drawn": (k,), "targets": (k,), "weights": (k,), "missing_quality",
        "included", "excluded", "held_out", "probe", "capacity": (k,) rows that may be drawn over all rounds,
        "budgets": [[budget, rows], ...]}.

    Raises:
        InputError: the pool lacks a listed row or is too small for a budget or quota, or the sampler needs too much memory.
    """
    facts: dict[str, Any] = run_task(draw_files, files, k, plan, str(folder), memory)
    return facts


def draw_files(files: DrawFiles, k: int, plan: DrawPlan, folder: str, memory: float) -> dict[str, Any]:
    """Do the work of `draw_round` in this process."""
    rows = PoolRows(files, k, plan, memory)
    merged = _merge([_draw_part(rows, part, plan) for part in rows.parts()])
    if rows.tokens is not None and rows.free.any() and not len(merged.index) and plan.budgets[-1]:
        shortest = int(rows.tokens[rows.free].min())
        raise InputError(f"budget {plan.budgets[-1]:,} tokens: no row is that short; the shortest has {shortest:,} tokens")
    _write(Path(folder), merged, rows, plan)
    return _facts(merged, rows, plan)


def _draw_part(rows: PoolRows, part: DrawPart, plan: DrawPlan) -> Draw:
    positions = np.flatnonzero(part.mask)
    candidates = rows.candidates(part.mask, part.budgets[-1])
    taken = np.searchsorted(positions, rows.included[part.mask[rows.included]])
    demand = Demand(
        part.budgets,
        None if rows.tokens is None else rows.tokens[positions],
        allocation_weights(part.sizes, plan.config) if plan.weights is None else np.array(plan.weights),
        None if plan.drawn is None else np.array(plan.drawn),
        None if plan.targets is None else np.array(plan.targets),
        rows.among[positions],
    )
    found = draw(candidates, taken, demand, plan.config, plan.seed)
    return replace(found, index=positions[found.index])


def _merge(draws: list[Draw]) -> Draw:
    """Merge the draws of several parts; cluster weights follow from their combined targets."""
    if len(draws) == 1:
        return draws[0]
    parts = ([getattr(one, name) for one in draws] for name in ("index", "weight", "gain", "level", "new"))
    index, weight, gain, level, new = (np.concatenate(arrays, axis=-1) for arrays in parts)
    drawn = np.sum([one.drawn for one in draws], axis=0)
    targets = np.sum([one.targets for one in draws], axis=0)
    weights = targets / targets.sum() if targets.sum() > 0 else draws[0].weights
    return Draw(index, weight, gain, level, new, drawn, targets, weights)


def _write(folder: Path, drawn: Draw, rows: PoolRows, plan: DrawPlan) -> None:
    order = np.argsort(drawn.index)
    index = drawn.index[order]
    last = _of_level(drawn, len(plan.budgets) - 1, rows, plan)
    selected = pa.table(
        {
            "row_id": last["row_id"],
            "cluster": rows.cluster[index],
            "quality": pa.array(rows.quality[index], from_pandas=True),
            "weight": last["weight"],
            "new": drawn.new[order],
            "budget": np.array(plan.budgets, np.int64)[drawn.level[order]],
            "why": last["why"],
        }
    )
    tables = {"selected": selected, "held_out": pa.table({"row_id": rows.row_ids[rows.held_out].astype("U32")})}
    if len(plan.budgets) > 1:
        tables["nested"] = pa.concat_tables(_of_level(drawn, level, rows, plan) for level in range(len(plan.budgets) - 1))
    if plan.probe:
        probe = {"row_id": rows.row_ids[rows.probe].astype("U32"), "cluster": rows.cluster[rows.probe]}
        tables["probe"] = pa.table(probe)
    for name, table in tables.items():
        write_table(folder / f"{name}.parquet", table)


def _of_level(drawn: Draw, level: int, rows: PoolRows, plan: DrawPlan) -> pa.Table:
    """Weight and reason of each row in one budget's selection, by row id."""
    kept = np.flatnonzero(drawn.level <= level)
    kept = kept[np.argsort(drawn.index[kept])]
    index = drawn.index[kept]
    return pa.table(
        {
            "of": np.full(len(kept), plan.budgets[level], np.int64),
            "row_id": rows.row_ids[index].astype("U32"),
            "weight": drawn.weight[level, kept],
            "why": _reasons(index, drawn.gain[kept], _steps(drawn, rows)[kept], rows, plan),
        }
    )


def _steps(drawn: Draw, rows: PoolRows) -> np.ndarray:
    """(b,) ordinal of each row among those chosen by the sampler."""
    return np.cumsum(~np.isin(drawn.index, rows.included))


def _reasons(index: np.ndarray, gain: np.ndarray, steps: np.ndarray, rows: PoolRows, plan: DrawPlan) -> list[str]:
    """Why each row of a selection was chosen, in one line."""
    name, sampler = plan.config.sampler, rows.sampler
    if isinstance(sampler, Greedy):
        texts = [f"{name}: choice {step:,}, gain {value:.4g}" for step, value in zip(steps, gain, strict=True)]
    elif sampler.by_cluster:
        counts, sizes = (np.bincount(rows.cluster[which], minlength=rows.k) for which in (index, rows.drawable))
        of_cluster = [f"{name}: cluster {j} gives {counts[j]:,} of {sizes[j]:,} rows" for j in range(rows.k)]
        texts = [of_cluster[cluster] for cluster in rows.cluster[index]]
    else:
        texts = [f"{name}: {len(index):,} of the pool's {int(rows.drawable.sum()):,} rows"] * len(index)
    included = np.isin(index, rows.included)
    return ["named in select.include" if known else text for known, text in zip(included, texts, strict=True)]


def _facts(drawn: Draw, rows: PoolRows, plan: DrawPlan) -> dict[str, Any]:
    of_budget = np.cumsum(np.bincount(drawn.level, minlength=len(plan.budgets)))
    return {
        "rows": len(drawn.index),
        "new": int(drawn.new.sum()),
        "tokens": None if rows.tokens is None else int(rows.tokens[drawn.index].sum()),
        "drawn": drawn.drawn.tolist(),
        "targets": drawn.targets.tolist(),
        "weights": drawn.weights.tolist(),
        "missing_quality": int((~np.isfinite(rows.quality[rows.scored])).sum()) if np.isfinite(rows.quality).any() else 0,
        "included": len(rows.included),
        "excluded": int((~rows.free).sum()) - len(rows.held_out) - len(rows.probe),
        "held_out": len(rows.held_out),
        "probe": len(rows.probe),
        "capacity": np.bincount(rows.cluster[rows.free], minlength=rows.k).tolist(),
        "budgets": [[budget, int(count)] for budget, count in zip(plan.budgets, of_budget, strict=True)],
    }
