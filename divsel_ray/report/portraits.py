"""Contents of clusters: mean quality of their rows, and the prompts nearest to and farthest from their centroids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.data.hashing import id_array
from divsel_ray.report.examples import beginning
from divsel_ray.report.records import existing
from divsel_ray.report.sample import Parts, Place, read_at

TYPICAL, ODD = 2, 1
LENGTH = 240
"""Maximum number of characters shown of a prompt."""


@dataclass(frozen=True)
class Portrait:
    """Beginnings of a cluster's prompts: those nearest to the centroid, and the farthest if there are more."""

    number: int
    typical: Sequence[str]
    odd: Sequence[str]


@dataclass(frozen=True)
class Look:
    """Result of examining `rows` rows: portraits of some clusters, and the mean quality of every cluster (None if unknown)."""

    rows: int
    portraits: Sequence[Portrait]
    quality: Sequence[float | None]


@dataclass
class _Sketch:
    """An unfinished portrait; `near` and `far` are the nearest and farthest rows so far, by increasing distance."""

    near: list[tuple[float, Place]] = field(default_factory=list)
    far: list[tuple[float, Place]] = field(default_factory=list)

    def add(self, name: str, rows: NDArray[np.int64], distance: NDArray[np.float32]) -> None:
        """Add rows (m,) of one part, ascending, given the distances of all rows of the part."""
        ordered = [(float(distance[row]), (name, int(row))) for row in rows[np.argsort(distance[rows], kind="stable")]]
        self.near = sorted(self.near + ordered[:TYPICAL])[:TYPICAL]
        self.far = sorted(self.far + ordered[-ODD:])[-ODD:]

    @property
    def typical(self) -> list[Place]:
        """The nearest rows."""
        return [place for _, place in self.near]

    @property
    def odd(self) -> list[Place]:
        """The farthest row, unless it is among the nearest."""
        return [place for _, place in self.far if place not in self.typical]


def look_at_clusters(parts: Parts, shown: Sequence[int], k: int) -> Look:
    """Collect portraits and mean qualities of clusters.

    Args:
        parts: parts of the pool.
        shown: clusters to portray, in this order.
        k: number of clusters.

    Raises:
        InputError: a file is missing.
    """
    sketches = {cluster: _Sketch() for cluster in shown}
    rows, totals, known = 0, np.zeros(k), np.zeros(k, np.int64)
    for name in parts.names:
        table = pq.read_table(existing(parts.clusters / name), columns=["row_id", "cluster", "distance"])
        label, distance = table["cluster"].to_numpy(), table["distance"].to_numpy()
        for cluster, sketch in sketches.items():
            sketch.add(name, np.flatnonzero(label == cluster), distance)
        quality = _quality(parts, name, id_array(table["row_id"]))
        scored = np.isfinite(quality)
        totals += np.bincount(label[scored], quality[scored], minlength=k)
        known += np.bincount(label[scored], minlength=k)
        rows += len(table)
    means = [float(total / count) if count else None for total, count in zip(totals, known, strict=True)]
    return Look(rows, _portraits(parts, sketches), means)


def _portraits(parts: Parts, sketches: Mapping[int, _Sketch]) -> list[Portrait]:
    texts = _prompts(parts, [place for sketch in sketches.values() for place in (*sketch.typical, *sketch.odd)])
    return [
        Portrait(cluster, [texts[place] for place in sketch.typical], [texts[place] for place in sketch.odd])
        for cluster, sketch in sketches.items()
    ]


def _quality(parts: Parts, name: str, row_ids: NDArray[np.bytes_]) -> NDArray[np.float64]:
    """(n,) qualities of a part's rows, NaN if unknown."""
    found = np.full(len(row_ids), np.nan)
    if parts.quality is not None and (parts.quality / name).is_file():
        table = pq.read_table(parts.quality / name, columns=["row_id", "quality"])
        _, ours, theirs = np.intersect1d(row_ids, id_array(table["row_id"]), assume_unique=True, return_indices=True)
        found[ours] = table["quality"].to_numpy()[theirs]
    return found


def _prompts(parts: Parts, places: Sequence[Place]) -> dict[Place, str]:
    if not places:
        return {}
    texts = read_at(parts.pool, ["prompt"], places)["prompt"].to_pylist()
    return {place: beginning(text, LENGTH) for place, text in zip(sorted(places), texts, strict=True)}
