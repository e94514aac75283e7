"""A small finished run with vectors, so that its report has a map and portraits of its clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tests.report.conftest import FakeRun, K, row_ids

_CHOSEN = (0, 0, 0, 1, 1, 2)
"""Clusters of the rows that are selected, which are the first ones."""


@dataclass
class MappedRun(FakeRun):
    """Rows in `parts` parts about the corners 0, 10 and 20 of `dimension` axes; row `i` has the text `texts[i]`, if there is one.

    Rows 0 to 5 are selected. With rounds, the quality of row `i` is `i`, and those of rows 7 and 8 are not known: row 7 has a
    null, row 8 no line.
    """

    parts: int = 4
    dimension: int = 8
    texts: Sequence[str] = ()

    def pool_and_clusters(self) -> None:
        numbers = range(self.pool_rows)
        label = np.array([*_CHOSEN, *(number % K for number in numbers)][: self.pool_rows], np.int32)
        places = 10 * label[:, None] + np.random.default_rng(0).standard_normal((self.pool_rows, self.dimension))
        texts = [self.texts[at] if at < len(self.texts) else f"question {at}" for at in numbers]
        facts = {"rows": self.pool_rows, "rows_read": 40, "bad_rows": 3, "duplicates": 4, "tokens": 900, "sampled_from": 33}
        pool, embed, cluster = {}, {}, {}
        for name, ids, rows in self._cut():
            distance = np.linalg.norm(places[rows] - 10 * label[rows, None], axis=1).astype(np.float32)
            flat = pa.array(places[rows].astype(np.float16).reshape(-1), pa.float16())
            pool[name] = {"row_id": ids, "prompt": [texts[row] for row in rows]}
            embed[name] = {"row_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, self.dimension)}
            cluster[name] = {"row_id": ids, "cluster": label[rows], "distance": distance}
        self.commit("pool", {**facts, "bad_reasons": {}, "files": {}, "score_missing": 0}, pool)
        self.commit("embed", {"rows": self.pool_rows, "dimension": self.dimension}, embed)
        sizes = np.bincount(label, minlength=K).tolist()
        stage = self.commit("cluster", {"k": K, "sizes": sizes, "inertia": 12.5, "iterations": 7, "warnings": []}, cluster)
        np.save(stage.folder / "centroids.npy", np.repeat(10.0 * np.arange(K)[:, None], self.dimension, axis=1))

    def reward_and_quality(self) -> None:
        self.commit("reward", {"held_out_accuracy": 0.81, "accuracy_by_kind": {"truncated": 0.8}})
        files = {}
        for name, ids, rows in self._cut():
            kept = [at for at, row in enumerate(rows) if row != 8]
            values = [None if rows[at] == 7 else float(rows[at]) for at in kept]
            files[name] = {"row_id": [ids[at] for at in kept], "quality": pa.array(values, pa.float64())}
        self.commit("quality", {"rows": self.pool_rows, "missing": 1, "mean": 0.0, "sd": 0.5}, files)

    def _cut(self) -> list[tuple[str, list[str], list[int]]]:
        """File names, row ids ascending, and numbers of rows of each part."""
        order = sorted(zip(row_ids(0, self.pool_rows), range(self.pool_rows), strict=True))
        pieces = np.array_split(np.arange(self.pool_rows), self.parts)
        return [
            (f"part-{at:05d}.parquet", [order[one][0] for one in piece], [order[one][1] for one in piece])
            for at, piece in enumerate(pieces)
        ]
