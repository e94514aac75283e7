"""Diversity of a selection compared with random subsets of its size; one Ray task reads only the vectors of these rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from divsel_ray.data.hashing import id_array
from divsel_ray.select.columns import PoolColumns
from divsel_ray.select.diversity import COMPARED, Rows, intervals, measure, pool_mix, random_subset
from divsel_ray.select.lists import positions_of
from divsel_ray.select.plan import DrawFiles
from divsel_ray.store import write_json
from divsel_ray.tasks import run_task

DRAWS = 20
"""Number of random subsets that a small selection is compared with."""
MOST_ROWS = 400_000
"""Total rows of all subsets, whose vectors are held in memory. Large subsets differ little, so a few of them suffice."""
SAMPLE = 5_000
"""Number of rows for nearest neighbours and the Vendi score."""


def measure_selection(files: DrawFiles, k: int, selected: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Write `diversity.json`: {"selection": measures, "random": {measure: {"mean", "low", "high"}}, "draws": subsets}.

    Args:
        files: the pool, its clusters and its embeddings.
        k: number of clusters.
        selected: Parquet with the row_id of the selected rows.
        seed: seed of the random subsets and samples.
        folder: folder to write to.

    Returns:
        {"draws", "clusters_covered", "vendi"}; the last two are those of the selection.
    """
    return run_task(_measure, files, k, str(selected), seed, str(folder))


def _measure(files: DrawFiles, k: int, selected: str, seed: int, folder: str) -> dict[str, Any]:
    columns = PoolColumns(files.clusters)
    cluster = columns.read(files.clusters, "cluster", np.int32, 0)
    source = columns.read_texts(files.pool, "source")
    chosen = np.sort(positions_of(columns.row_ids, id_array(pq.read_table(selected, columns=["row_id"])["row_id"])))
    draws = int(np.clip(MOST_ROWS // max(len(chosen), 1), 2, DRAWS))
    subsets = [chosen, *(random_subset(columns.row_ids, len(chosen), seed, draw) for draw in range(draws))]
    wanted = np.zeros(len(cluster), bool)
    wanted[np.concatenate(subsets)] = True
    known = Rows(
        columns.row_ids[wanted],
        columns.read_vectors(files.embeddings, wanted),
        cluster[wanted],
        columns.read(files.pool, "n_tokens", np.int64, 0)[wanted],
        source[wanted],
    )
    mix, place = pool_mix(cluster, source, k), np.cumsum(wanted) - 1
    own, *others = (measure(known.take(place[subset]), mix, seed, SAMPLE) for subset in subsets)
    random = {name: asdict(interval) for name, interval in intervals(others).items()}
    found = {"selection": asdict(own), "random": random, "draws": draws, "compared": COMPARED}
    write_json(Path(folder) / "diversity.json", _plain(found))
    return {"draws": draws, "clusters_covered": own.clusters_covered, "vendi": own.vendi}


def _plain(value: Any) -> Any:
    """The same value with null in place of non-finite numbers, which JSON cannot represent."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
