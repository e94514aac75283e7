"""A selection measured beside random subsets, from files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.select.diversity_stage import measure_selection
from divsel_ray.select.plan import DrawFiles
from tests.select.drawing import row_ids


def test_a_selection_is_measured_beside_random_subsets_of_its_size(cluster, tmp_path):
    """Eight groups of equal vectors, of one row to fifty: one row of each is as diverse as can be."""
    sizes = np.array([50, 30, 20, 10, 5, 3, 1, 1])
    group = np.repeat(np.arange(8), sizes)
    ids = row_ids(len(group)).astype("U32")
    flat = pa.array(np.eye(8, dtype=np.float16)[group].reshape(-1))
    tables = {
        "clusters": {"row_id": ids, "cluster": group.astype(np.int32)},
        "pool": {"row_id": ids, "source": np.where(group < 4, "a.jsonl", "b.jsonl"), "n_tokens": 10 + group},
        "embeddings": {"row_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, 8)},
        "selected": {"row_id": ids[np.unique(group, return_index=True)[1]]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    files = DrawFiles(*([str(tmp_path / f"{name}.parquet")] if name else [] for name in ("clusters", "", "pool", "embeddings")))
    facts = measure_selection(files, 8, tmp_path / "selected.parquet", 0, tmp_path)
    found = json.loads((tmp_path / "diversity.json").read_text())
    assert facts["draws"] == found["draws"] == 20
    own, random = found["selection"], found["random"]
    assert (own["rows"], own["clusters_covered"], own["copies"], own["nearest_distance"]) == (8, 1.0, 0.0, 1.0)
    assert abs(own["vendi"] - 8) < 1e-6
    assert own["sources"] == {"a.jsonl": 0.5, "b.jsonl": 0.5}
    assert own["tokens_mean"] == 13.5
    assert random["clusters_covered"]["high"] < 1
    assert random["vendi"]["high"] < 8


def test_a_single_row_has_no_nearest_one_and_that_is_null(cluster, tmp_path):
    ids = row_ids(3).astype("U32")
    flat = pa.array(np.eye(3, dtype=np.float16).reshape(-1))
    columns = {"row_id": ids, "cluster": np.zeros(3, np.int32), "source": ["a"] * 3, "n_tokens": [1, 2, 3]}
    table = pa.table({**columns, "embedding": pa.FixedSizeListArray.from_arrays(flat, 3)})
    pq.write_table(table, tmp_path / "all.parquet")
    pq.write_table(table.slice(1, 1), tmp_path / "selected.parquet")
    every = [str(tmp_path / "all.parquet")]
    measure_selection(DrawFiles(every, [], every, every), 1, tmp_path / "selected.parquet", 0, tmp_path)
    assert json.loads((tmp_path / "diversity.json").read_text())["selection"]["nearest_distance"] is None
