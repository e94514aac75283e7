"""A unit of scoring: its file is made once, and a scorer is loaded only for what there is to score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.score.parts import Part, score_part


class Lengths:
    """Scores a completion by its length; one called `none` has no score."""

    def __init__(self) -> None:
        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}

    def score(self, exchanges):
        self.problem = "row b: none"
        lengths = np.array([len(row.completion) for row in exchanges], dtype=np.float64)
        self.signals = {"length": lengths}
        return np.where([row.completion == "none" for row in exchanges], np.nan, lengths)


def forbidden():
    raise AssertionError("nothing is to be scored")


def write_rows(path: Path, texts: dict[str, str]) -> str:
    messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in texts.values()]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    pq.write_table(pa.table({"row_id": pa.array(list(texts), pa.string()), "messages": pa.array(messages, kind)}), path)
    return str(path)


def test_a_unit_is_scored_once_with_its_signals_and_counts(tmp_path):
    part = Part(write_rows(tmp_path / "in.parquet", {"a": "xx", "b": "none", "c": "xxxx"}), str(tmp_path / "out"), "quality")
    counts = score_part(part, Lengths)
    assert pq.read_table(part.target).to_pydict() == {
        "row_id": ["a", "b", "c"],
        "quality": [2, None, 4],
        "length": [2, 4, 4],
    }
    assert (counts["rows"], counts["missing"], counts["mean"], counts["problem"]) == (3, 1, 3, "row b: none")
    assert score_part(part, forbidden) == counts | {"problem": ""}


def test_no_scorer_is_loaded_for_a_unit_without_rows(tmp_path):
    part = Part(write_rows(tmp_path / "in.parquet", {}), str(tmp_path / "out"), "score")
    counts = score_part(part, forbidden)
    assert (counts["rows"], counts["missing"]) == (0, 0)
    assert pq.read_table(part.target).column_names == ["row_id", "score"]


def test_what_a_scorer_raises_leaves_no_file(tmp_path):
    part = Part(write_rows(tmp_path / "in.parquet", {"a": "xx"}), str(tmp_path / "out"), "quality")
    with pytest.raises(AssertionError):
        score_part(part, forbidden)
    assert not Path(part.target).exists()
