"""Drawing a round's rows: one Ray task reads what the sampler asks for and writes only what was drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.config import SelectConfig
from divsel_ray.data.hashing import uniform_hash
from divsel_ray.errors import InputError
from divsel_ray.select.allocation import allocate
from divsel_ray.select.columns import PoolColumns
from divsel_ray.select.draw import Demand, Draw, draw
from divsel_ray.select.keyed import Groups
from divsel_ray.select.lists import find_ids, positions_of, read_ids
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates, Greedy, Keys
from divsel_ray.store import atomic_path
from divsel_ray.tasks import result_of


@dataclass(frozen=True)
class DrawFiles:
    """What a draw may read; Parquet, one file or many, joined by row id.

    Attributes:
        clusters: row_id, cluster, distance: these are the pool's rows.
        quality: row_id, quality; empty for no quality.
        pool: row_id, source, n_tokens.
        embeddings: row_id, embedding.
        removed: row_id of rows that cannot be drawn.
    """

    clusters: list[str]
    quality: list[str] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DrawPlan:
    """What one round draws.

    Attributes:
        config: the sampler and its settings.
        seed: of the draw; the same in every round, which makes rounds extend one another.
        budgets: ascending and nested, in `unit`; the last is what is drawn by the end of this round.
        unit: rows or tokens.
        allow_fewer: take what there is where that is less than a budget or quota.
        held_out: rows kept out of every round, where the pool has them to spare beside `reserved`.
        reserved: rows that all rounds together draw.
        drawn: (k,) rows drawn per cluster in earlier rounds, or None in the first.
        weights: (k,) cluster weights, or None for `config.allocation` of the cluster sizes.
        targets: (k,) targets accumulated over earlier rounds, or None in the first.
    """

    config: SelectConfig
    seed: int
    budgets: list[int]
    unit: str = "rows"
    allow_fewer: bool = False
    held_out: int = 0
    reserved: int = 0
    drawn: list[int] | None = None
    weights: list[float] | None = None
    targets: list[float] | None = None


def draw_round(files: DrawFiles, k: int, plan: DrawPlan, folder: Path, memory: float = math.inf) -> dict[str, Any]:
    """Write `selected.parquet` and `held_out.parquet` (row_id).

    Selected are all rows so far, by row id: row_id, cluster, quality, weight, new, budget (the smallest that holds the row)
    and why.

    Args:
        files: what to read.
        k: number of clusters.
        plan: what to draw.
        folder: where to write.
        memory: bytes that vectors and the sampler may take.

    Returns:
        {"rows", "new", "tokens" (of budgets in tokens), "drawn": (k,), "targets": (k,), "weights": (k,), "missing_quality",
        "included", "excluded", "budgets": [[budget, rows], ...]}.

    Raises:
        InputError: the pool does not hold a budget, quota or listed row, or the sampler needs more memory than there is.
    """
    facts: dict[str, Any] = result_of(ray.remote(num_cpus=1)(_draw_files).remote(files, k, plan, str(folder), memory))
    return facts


def _draw_files(files: DrawFiles, k: int, plan: DrawPlan, folder: str, memory: float) -> dict[str, Any]:
    rows = _Rows(files, k, plan, memory)
    merged = _merge([_draw_part(rows, part, plan) for part in rows.parts()], rows)
    _write(Path(folder), merged, rows, plan)
    return _facts(merged, rows, plan)


class _Rows:
    """The pool's rows as far as the plan needs to know them, in ascending order of their ids."""

    def __init__(self, files: DrawFiles, k: int, plan: DrawPlan, memory: float) -> None:
        config, self._memory = plan.config, memory
        self.sampler = SAMPLERS[config.sampler]
        self.columns = PoolColumns(files.clusters)
        self.row_ids, self.k, self._files, self._plan = self.columns.row_ids, k, files, plan
        self.cluster = self.columns.read(files.clusters, "cluster", np.int32, 0)
        self.quality = self._quality()
        self.tokens = self.columns.read(files.pool, "n_tokens", np.int64, 0) if plan.unit == "tokens" else None
        self.included = find_ids(self.row_ids, config.include, "include", required=True)
        self.excluded = find_ids(self.row_ids, config.exclude, "exclude", required=False)
        self.free = self._free()
        self.held_out = self._held_out()

    def _quality(self) -> np.ndarray:
        if not self._files.quality:
            return np.full(len(self.row_ids), np.nan)
        return self.columns.read(self._files.quality, "quality", np.float64, np.nan)

    def _free(self) -> np.ndarray:
        """(n,) rows that may be drawn, those included among them."""
        config, free = self._plan.config, np.ones(len(self.row_ids), bool)
        free[self.excluded] = False
        if self._files.removed:
            removed = np.concatenate([read_ids(Path(file)) for file in self._files.removed])
            free[positions_of(self.row_ids, removed)] = False
        if config.missing == "drop" and self._files.quality:
            free &= np.isfinite(self.quality)
        clash = np.intersect1d(self.included, self.excluded)
        if len(clash):
            raise InputError(
                f"select.include and select.exclude: both hold {len(clash)} row ids, the first is "
                f"{self.row_ids[clash[0]].decode()}; take them out of one"
            )
        free[self.included] = True
        return free

    def _held_out(self) -> np.ndarray:
        """Positions of the rows kept out of every round; those rows are not free any more."""
        count = min(self._plan.held_out, int(self.free.sum()) - self._plan.reserved)
        if count <= 0:
            return np.array([], np.int64)
        able = self.free.copy()
        able[self.included] = False
        hashes = Keys(uniform_hash(self._plan.seed, "held-out", self.row_ids[able]))
        one_group = Groups(hashes, np.zeros(len(hashes.values), np.int64), 1)
        held_out = np.flatnonzero(able)[one_group.smallest(np.array([min(count, len(hashes.values))]))]
        self.free[held_out] = False
        return np.asarray(held_out)

    def parts(self) -> list[_Part]:
        """The rows of each source that has a quota, and the others, with their budgets."""
        plan, quotas = self._plan, self._plan.config.quotas
        if not quotas:
            return [_Part("the pool", self.free, self._limited("budget", plan.budgets, self.free))]
        if sum(quotas.values()) > plan.budgets[-1]:
            raise InputError(f"select.quotas: they add up to more than the budget of {plan.budgets[-1]} {plan.unit}")
        source = self.columns.read_texts(self._files.pool, "source")
        rest, parts = self.free.copy(), []
        for name, quota in quotas.items():
            of_source = self.free & (source == name)
            if not (source == name).any():
                known = ", ".join(sorted(set(source.tolist()))[:5])
                raise InputError(f"select.quotas.{name}: no such source in the pool; there are {known}")
            rest &= ~of_source
            budgets = [_share(quota, budget, plan.budgets[-1]) for budget in plan.budgets]
            parts.append(_Part(name, of_source, self._limited(f"quota of {name}", budgets, of_source)))
        given = np.sum([part.budgets for part in parts], axis=0)
        left = [int(budget - used) for budget, used in zip(plan.budgets, given, strict=True)]
        return [*parts, _Part("the other sources", rest, self._limited("budget beside the quotas", left, rest))]

    def _limited(self, what: str, budgets: list[int], mask: np.ndarray) -> list[int]:
        """The budgets, if these rows hold them, or as much as they hold where fewer are allowed."""
        held = int(mask.sum() if self.tokens is None else self.tokens[mask].sum())
        of_included = self.included[mask[self.included]]
        listed = int(len(of_included) if self.tokens is None else self.tokens[of_included].sum())
        if listed > budgets[0]:
            raise InputError(f"{what} {budgets[0]:,} is less than the {listed:,} {self._plan.unit} of select.include; raise it")
        if budgets[-1] > held and not self._plan.allow_fewer:
            raise InputError(
                f"{what} {budgets[-1]} exceeds the pool's {held} {self._plan.unit}; lower it, or allow fewer "
                "(--allow-fewer, allow_fewer: true)"
            )
        return [min(budget, held) for budget in budgets]

    def candidates(self, mask: np.ndarray, budget: int) -> Candidates:
        """The rows under a mask, with what the sampler needs of them."""
        needs = self.sampler.needs
        distance = self.columns.read(self._files.clusters, "distance", np.float32, np.nan)[mask] if "distance" in needs else None
        vectors = self._vectors(mask, budget) if "vectors" in needs else None
        everything = bool(mask.all())
        parts = (self.row_ids, self.cluster, self.quality)
        row_ids, cluster, quality = parts if everything else (part[mask] for part in parts)
        return Candidates(row_ids, cluster, quality, self.k, distance, vectors)

    def _vectors(self, mask: np.ndarray, budget: int) -> np.ndarray:
        assert isinstance(self.sampler, Greedy)
        dimension, count = self.columns.dimension(self._files.embeddings), int(mask.sum())
        rows = min(budget, count) if self.tokens is None else count
        needed = 2 * count * dimension + self.sampler.memory(count, dimension, self.k, rows, self._plan.config)
        if needed > self._memory:
            raise InputError(
                f"select.sampler {self._plan.config.sampler}: {count:,} rows in {dimension} dimensions take about "
                f"{needed / 2**30:.1f} GiB here, {self._memory / 2**30:.1f} are free; thin the pool first (pool.sample, "
                "clean), or use kmq, which keeps no vectors"
            )
        return self.columns.read_vectors(self._files.embeddings, mask)


@dataclass(frozen=True)
class _Part:
    """Rows that are drawn from as if they were all: mask (n,) and budgets."""

    name: str
    mask: np.ndarray
    budgets: list[int]


def _share(quota: int, budget: int, total: int) -> int:
    """What a quota of the whole budget comes to in a smaller one."""
    return int(allocate(np.array([quota, max(total - quota, 0)], float), np.array([budget, budget]), budget)[0])


def _draw_part(rows: _Rows, part: _Part, plan: DrawPlan) -> Draw:
    positions = np.flatnonzero(part.mask)
    candidates = rows.candidates(part.mask, part.budgets[-1])
    taken = np.searchsorted(positions, rows.included[part.mask[rows.included]])
    demand = Demand(
        part.budgets,
        None if rows.tokens is None else rows.tokens[positions],
        *(None if value is None else np.array(value) for value in (plan.weights, plan.drawn, plan.targets)),
    )
    found = draw(candidates, taken, demand, plan.config, plan.seed)
    return replace(found, index=positions[found.index])


def _merge(draws: list[Draw], rows: _Rows) -> Draw:
    """One draw of several, weights of clusters by what each part drew."""
    if len(draws) == 1:
        return draws[0]
    index, weight, gain, level, new = (
        np.concatenate([getattr(one, name) for one in draws]) for name in ("index", "weight", "gain", "level", "new")
    )
    drawn = np.sum([one.drawn for one in draws], axis=0)
    targets = np.sum([one.targets for one in draws], axis=0)
    weights = targets / targets.sum() if targets.sum() > 0 else draws[0].weights
    return Draw(index, weight, gain, level, new, drawn, targets, weights)


def _write(folder: Path, drawn: Draw, rows: _Rows, plan: DrawPlan) -> None:
    why = _reasons(drawn, rows, plan)
    order = np.argsort(drawn.index)
    index = drawn.index[order]
    selected = pa.table(
        {
            "row_id": rows.row_ids[index].astype("U32"),
            "cluster": rows.cluster[index],
            "quality": pa.array(rows.quality[index], from_pandas=True),
            "weight": drawn.weight[order],
            "new": drawn.new[order],
            "budget": np.array(plan.budgets, np.int64)[drawn.level[order]],
            "why": [why[at] for at in order],
        }
    )
    held_out = pa.table({"row_id": rows.row_ids[rows.held_out].astype("U32")})
    for name, table in {"selected": selected, "held_out": held_out}.items():
        with atomic_path(folder / f"{name}.parquet") as path:
            pq.write_table(table, path)


def _reasons(drawn: Draw, rows: _Rows, plan: DrawPlan) -> list[str]:
    """Why each row was taken, in one line, in the order of the draw."""
    name, sampler = plan.config.sampler, rows.sampler
    included = np.isin(drawn.index, rows.included)
    if isinstance(sampler, Greedy):
        steps = np.cumsum(~included)
        texts = [f"{name}: choice {step:,}, gain {gain:.4g}" for step, gain in zip(steps, drawn.gain, strict=True)]
    elif sampler.by_cluster:
        sizes = np.bincount(rows.cluster[rows.free], minlength=rows.k)
        of_cluster = [f"{name}: cluster {j} gives {drawn.drawn[j]:,} of {sizes[j]:,} rows" for j in range(rows.k)]
        texts = [of_cluster[cluster] for cluster in rows.cluster[drawn.index]]
    else:
        texts = [f"{name}: {len(drawn.index):,} of the pool's {int(rows.free.sum()):,} rows"] * len(drawn.index)
    return ["named in select.include" if known else text for known, text in zip(included, texts, strict=True)]


def _facts(drawn: Draw, rows: _Rows, plan: DrawPlan) -> dict[str, Any]:
    of_budget = np.cumsum(np.bincount(drawn.level, minlength=len(plan.budgets)))
    return {
        "rows": len(drawn.index),
        "new": int(drawn.new.sum()),
        "tokens": None if rows.tokens is None else int(rows.tokens[drawn.index].sum()),
        "drawn": drawn.drawn.tolist(),
        "targets": drawn.targets.tolist(),
        "weights": drawn.weights.tolist(),
        "missing_quality": int((~np.isfinite(rows.quality)).sum()) if np.isfinite(rows.quality).any() else 0,
        "included": len(rows.included),
        "excluded": int((~rows.free).sum()) - len(rows.held_out),
        "budgets": [[budget, int(count)] for budget, count in zip(plan.budgets, of_budget, strict=True)],
    }
