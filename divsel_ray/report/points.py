"""The points of a run's map: a fixed number of pool rows, and the selected rows.

They are computed once and kept in `<out>/map/<key>/`: the arithmetic of another machine would move them, but a page that is
written again has to be identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.cluster.rows import to_matrix
from divsel_ray.data.conversation import prompt_text
from divsel_ray.data.hashing import id_array
from divsel_ray.report.examples import beginning
from divsel_ray.report.facts import read_selection
from divsel_ray.report.map import FEWEST_ROWS, project
from divsel_ray.report.records import read_stages
from divsel_ray.report.sample import Parts, Place, find_parts, first_places, places_of, read_at, thin
from divsel_ray.store import Store, write_table

POOL_ROWS, SELECTED_ROWS = 3_000, 1_000
LENGTH = 160
"""Maximum number of characters kept of a prompt."""
VERSION = 1
"""Increase it with every change that moves the points."""
_FILE = "points.parquet"


@dataclass(frozen=True)
class Points:
    """Rows on the map, in row id order: positions (n, 2), clusters (n,), whether selected (n,), and truncated prompts."""

    places: NDArray[np.float32]
    clusters: NDArray[np.int32]
    selected: NDArray[np.bool_]
    texts: Sequence[str]

    @property
    def marked(self) -> int:
        """Number of selected rows."""
        return int(self.selected.sum())

    @property
    def embedded(self) -> bool:
        """Whether there are enough rows to be placed by t-SNE."""
        return len(self.texts) >= FEWEST_ROWS

    @property
    def pool_rows(self) -> int:
        """Number of other rows."""
        return len(self.texts) - self.marked


def read_points(folder: str | Path, *, directions: bool) -> Points | None:
    """Read the points of a finished run, computing them if necessary; None if the run has no vectors.

    Args:
        folder: folder of the run.
        directions: whether to ignore the lengths of vectors, as clustering by cosine does.

    Raises:
        InputError: files of the run are missing.
    """
    manifest, stages = read_stages(folder)
    parts = find_parts(stages)
    if parts is None:
        return None
    keys = [stages[name].folder.name for name in ("embed", "cluster")]
    settings = {"pool": POOL_ROWS, "selected": SELECTED_ROWS, "characters": LENGTH, "directions": directions}
    stage = Store(folder).stage("map", VERSION, settings, [*keys, manifest["row_ids_sha256"]])
    if not stage.committed:
        table = _made(parts, Path(folder), directions)
        write_table(stage.start() / _FILE, table)
        stage.commit({"rows": len(table)})
    return _points(pq.read_table(stage.folder / _FILE))


def _made(parts: Parts, folder: Path, directions: bool) -> pa.Table:
    drawn = read_selection(folder, ["row_id", "messages"])
    of_selected = id_array(drawn["row_id"])
    even, shown = first_places(parts, POOL_ROWS), places_of(parts, of_selected)
    places = sorted({*even, *(shown[at] for at in thin(len(shown), SELECTED_ROWS))})
    rows = read_at(parts.clusters, ["row_id", "cluster"], places)
    ids = id_array(rows["row_id"])
    vectors = np.asarray(to_matrix(read_at(parts.embeddings, ["embedding"], places)["embedding"]), np.float32)
    across = project(vectors, directions=directions)
    texts = _pool_texts(parts, even) | _selected_texts(drawn, np.flatnonzero(np.isin(of_selected, ids)))
    return pa.table(
        {
            "row_id": rows["row_id"],
            "cluster": rows["cluster"],
            "selected": np.isin(ids, of_selected),
            "x": across[:, 0],
            "y": across[:, 1],
            "text": [texts[row_id] for row_id in rows["row_id"].to_pylist()],
        }
    )


def _pool_texts(parts: Parts, places: Sequence[Place]) -> dict[str, str]:
    table = read_at(parts.pool, ["row_id", "prompt"], places)
    return {
        row_id: beginning(text, LENGTH) for row_id, text in zip(*(column.to_pylist() for column in table.columns), strict=True)
    }


def _selected_texts(drawn: pa.Table, rows: NDArray[np.int64]) -> dict[str, str]:
    return {row["row_id"]: beginning(prompt_text(row["messages"]), LENGTH) for row in drawn.take(pa.array(rows)).to_pylist()}


def _points(table: pa.Table) -> Points:
    return Points(
        places=np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1),
        clusters=table["cluster"].to_numpy(),
        selected=table["selected"].to_numpy(zero_copy_only=False),
        texts=table["text"].to_pylist(),
    )
