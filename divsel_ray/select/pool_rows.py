"""The pool as seen by a draw: which rows may be drawn, what is known about them, and how many each part contributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divsel_ray.data.hashing import uniform_hash
from divsel_ray.errors import InputError
from divsel_ray.select.allocation import split_budgets
from divsel_ray.select.columns import PoolColumns
from divsel_ray.select.keyed import Groups
from divsel_ray.select.lists import check_sources, find_ids, positions_of, read_ids
from divsel_ray.select.plan import DrawFiles, DrawPlan
from divsel_ray.select.registry import SAMPLERS, memory_of
from divsel_ray.select.sampler import Candidates, Keys

_Share = Callable[[np.ndarray, int, int], np.ndarray]


class PoolRows:
    """The columns of the pool that the plan needs, in ascending order of row ids.

    Args:
        files: files that may be read.
        k: number of clusters.
        plan: what to draw.
        memory: bytes available for vectors and the sampler.

    Attributes:
        sampler: the plan's sampler.
        row_ids, cluster, quality: (n,) values for every row; quality is NaN where unknown.
        tokens: (n,), or None if budgets count rows.
        included, excluded: positions, ascending, of the listed rows.
        held_out: positions, ascending, of the rows kept out of every round.
        probe: positions, ascending, of the rows of each cluster kept out of every round.
        scored: (n,) mask of rows drawn for scoring; all rows if none were left out.
        drawable: (n,) mask of rows eligible in principle, including the listed ones; cluster sizes count these.
        free: (n,) mask of the drawable rows that are scored and neither held out nor in the probe.

    Raises:
        InputError: the lists name unknown rows or contradict each other, or too few rows may be drawn.
    """

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
        self.scored = ~self._listed(files.unscored)
        self.drawable = self._drawable()
        self.free = self.drawable & self.scored
        self.free[self.included] = True
        self._check_reserved()
        all_alike = np.zeros(len(self.row_ids), self.cluster.dtype)
        self.held_out = self._set_aside("held-out", plan.held_out, all_alike, 1, share_held_out)
        self.probe = self._set_aside("probe", plan.probe, self.cluster, k, share_probe)

    def _quality(self) -> np.ndarray:
        if not self._files.quality:
            return np.full(len(self.row_ids), np.nan)
        return self.columns.read(self._files.quality, "quality", np.float64, np.nan)

    def _listed(self, files: list[str]) -> np.ndarray:
        """(n,) mask of the rows listed in these files."""
        named = np.zeros(len(self.row_ids), bool)
        for file in files:
            named[positions_of(self.row_ids, read_ids(Path(file)))] = True
        return named

    def _drawable(self) -> np.ndarray:
        """(n,) mask of the rows that could be drawn if all were scored, including those in select.include."""
        config, free = self._plan.config, ~self._listed(self._files.removed)
        free[self.excluded] = False
        if config.missing == "drop" and self._files.quality:
            free &= np.isfinite(self.quality) | ~self.scored
        clash = np.intersect1d(self.included, self.excluded)
        if len(clash):
            raise InputError(
                f"select.include and select.exclude: {len(clash)} row ids are in both, the first is "
                f"{self.row_ids[clash[0]].decode()}; remove them from one"
            )
        free[self.included] = True
        return free

    @property
    def among(self) -> np.ndarray:
        """(n,) inverse of the probability that a row is free, given that it is drawable."""
        drawable, free = (np.bincount(self.cluster[mask], minlength=self.k) for mask in (self.drawable, self.free))
        listed = np.bincount(self.cluster[self.included], minlength=self.k)
        return np.asarray((drawable - listed) / np.maximum(free - listed, 1))[self.cluster]

    def _check_reserved(self) -> None:
        """Reject in the first round a budget that only the last would miss, after all the training before it."""
        plan, able = self._plan, self._held(self.free)
        if plan.reserved > able and not plan.allow_fewer:
            raise InputError(
                f"budget {plan.reserved:,} exceeds the {able:,} {plan.unit} that may be drawn: select.exclude, select.missing: "
                "drop, clean.semantic_duplicates and quality.oversample exclude the others; lower the budget, exclude fewer, or "
                "allow fewer (--allow-fewer, allow_fewer: true)"
            )

    def _set_aside(self, purpose: str, wanted: int, group: np.ndarray, k: int, share: _Share) -> np.ndarray:
        """Positions, ascending, of rows kept out of every round; these rows are no longer free.

        Args:
            purpose: purpose of the rows; each has its own random order.
            wanted: rows wanted from each group.
            group: (n,) in 0..k-1.
            k: number of groups.
            share: (group sizes (k,), wanted, total rows that the rounds can spare) to the rows set aside from each group, (k,).
        """
        spare = int(self.free.sum()) - self._plan.reserved
        if not wanted or spare <= 0:
            return np.array([], np.int64)
        able = self.free.copy()
        able[self.included] = False
        keyed = Groups(Keys(uniform_hash(self._plan.seed, purpose, self.row_ids[able])), group[able], k)
        taken = np.flatnonzero(able)[keyed.smallest(share(keyed.sizes, wanted, spare))]
        self.free[taken] = False
        return np.asarray(taken)

    def parts(self) -> list[DrawPart]:
        """The rows of each source with a quota, and the remaining rows, with their budgets.

        Raises:
            InputError: a budget or quota exceeds the available rows, or a source does not exist.
        """
        budgets, quotas = self._plan.budgets, self._plan.config.quotas
        if sum(quotas.values()) > budgets[-1]:
            raise InputError(f"select.quotas: their sum exceeds the budget of {budgets[-1]} {self._plan.unit}")
        # In the order of names: a manifest keeps no other order, and drawing from it again must give the same rows.
        names = sorted(quotas)
        sources = self._of_sources(names)
        masks = [self.free & source for source in sources]
        # The last part gets the budget that no quota claims.
        finals = [self._limited(f"quota of {name}", quotas[name], mask) for name, mask in zip(names, masks, strict=False)]
        others = "budget remaining after quotas" if quotas else "budget"
        finals.append(self._limited(others, budgets[-1] - sum(finals), masks[-1]))
        shares = split_budgets(budgets, np.array(finals)).T.tolist()
        for what, mask, share in zip([*(f"quota of {name}" for name in names), others], masks, shares, strict=True):
            self._check_included(what, mask, share[0])
        return [
            DrawPart(mask, share, np.bincount(self.cluster[self.drawable & source], minlength=self.k))
            for mask, share, source in zip(masks, shares, sources, strict=True)
        ]

    def _of_sources(self, names: list[str]) -> list[np.ndarray]:
        """For each named source, an (n,) mask of its rows; last, a mask of the rows of all other sources."""
        source = self.columns.read_texts(self._files.pool, "source") if names else np.array([])
        check_sources(self._plan.config, set(source.tolist()))
        named = [source == name for name in names]
        return [*named, ~np.logical_or.reduce([np.zeros(len(self.row_ids), bool), *named])]

    def _limited(self, what: str, wanted: int, mask: np.ndarray) -> int:
        """The wanted amount, or the amount under the mask if that is less and fewer are allowed."""
        held = self._held(mask)
        if wanted > held and not self._plan.allow_fewer:
            raise InputError(
                f"{what} {wanted} exceeds the pool's {held} {self._plan.unit}; lower it, or allow fewer "
                "(--allow-fewer, allow_fewer: true)"
            )
        return min(wanted, held)

    def _check_included(self, what: str, mask: np.ndarray, smallest: int) -> None:
        included = np.zeros_like(mask)
        included[self.included] = True
        listed = self._held(included & mask)
        if listed > smallest:
            raise InputError(f"{what} {smallest:,} is less than the {listed:,} {self._plan.unit} in select.include; raise it")

    def _held(self, mask: np.ndarray) -> int:
        """Number of rows under a mask, or of their tokens if budgets count tokens."""
        return int(mask.sum() if self.tokens is None else self.tokens[mask].sum())

    def candidates(self, mask: np.ndarray, budget: int) -> Candidates:
        """The rows under a mask, with the columns that the sampler needs to fill the budget.

        Raises:
            InputError: the draw needs more memory than is available.
        """
        needs = self.sampler.needs
        distance = self.columns.read(self._files.clusters, "distance", np.float32, np.nan)[mask] if "distance" in needs else None
        vectors = self._vectors(mask, budget) if "vectors" in needs else None
        everything = bool(mask.all())
        parts = (self.row_ids, self.cluster, self.quality)
        row_ids, cluster, quality = parts if everything else (part[mask] for part in parts)
        return Candidates(row_ids, cluster, quality, self.k, distance, vectors)

    def _vectors(self, mask: np.ndarray, budget: int) -> np.ndarray:
        dimension, count = self.columns.dimension(self._files.embeddings), int(mask.sum())
        rows = min(budget, count) if self.tokens is None else count
        needed = memory_of(self.sampler, count, dimension, self.k, rows, self._plan.config)
        if needed > self._memory:
            raise InputError(
                f"select.sampler {self._plan.config.sampler}: {count:,} rows in {dimension} dimensions need about "
                f"{needed / 2**30:.1f} GiB of memory, {self._memory / 2**30:.1f} GiB are available; reduce the pool first "
                "(pool.sample, clean), or use kmq, which needs no vectors"
            )
        return self.columns.read_vectors(self._files.embeddings, mask)


@dataclass(frozen=True)
class DrawPart:
    """Rows drawn from as a separate pool: mask (n,), budgets, and the sizes of their clusters (k,)."""

    mask: np.ndarray
    budgets: list[int]
    sizes: np.ndarray


def share_held_out(sizes: np.ndarray, wanted: int, spare: int) -> np.ndarray:
    """Held-out rows of each group, (k,): at most `wanted`, its size and `spare`."""
    return np.minimum(sizes, min(wanted, spare))


def share_probe(sizes: np.ndarray, wanted: int, spare: int) -> np.ndarray:
    """Probe rows of each cluster, (k,): at most `wanted` and half of its rows, and at most `spare` in total.

    If that is too few for all, each cluster gets its first row before any gets its second, the largest clusters first.

    Args:
        sizes: (k,) eligible rows.
        wanted: rows wanted from each cluster.
        spare: maximum total.
    """
    counts = np.zeros(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    for turn in range(1, wanted + 1):
        counts[order[sizes[order] >= 2 * turn][: max(spare - int(counts.sum()), 0)]] += 1
    return counts
