"""Drawing rounds from files: exact totals, joins by row id, held-out rows kept apart."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import SelectConfig
from divsel_ray.errors import InputError
from divsel_ray.select.stage import DrawPlan, draw_round

ROWS, K = 120, 4


@pytest.fixture
def files(tmp_path):
    """Clusters in two files, and quality for the same rows in another order and split."""
    generator = np.random.default_rng(0)
    ids = np.array(sorted(generator.bytes(16).hex() for _ in range(ROWS)))
    clusters = pa.table({"row_id": ids, "cluster": np.arange(ROWS, dtype=np.int32) % K, "distance": np.zeros(ROWS, np.float32)})
    order = generator.permutation(ROWS)
    quality = pa.table({"row_id": ids[order], "quality": np.arange(ROWS, dtype=float)[order]})
    return write(tmp_path / "clusters", clusters, 50), write(tmp_path / "quality", quality, 90)


def write(folder, table, cut):
    folder.mkdir()
    for name, part in (("a", table.slice(0, cut)), ("b", table.slice(cut))):
        pq.write_table(part, folder / f"{name}.parquet")
    return [str(folder / "a.parquet"), str(folder / "b.parquet")]


def read(folder, name="selected"):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_quality_is_joined_by_row_id_and_not_by_position(cluster, files, tmp_path):
    plan = DrawPlan(SelectConfig(temperature=1e-3), seed=0, budget=8, round_size=8)
    facts = draw_round(*files, K, plan, tmp_path)
    assert facts["drawn"] == [2, 2, 2, 2]
    assert sorted(row["quality"] for row in read(tmp_path)) == [112, 113, 114, 115, 116, 117, 118, 119]


def test_rounds_extend_one_another_to_exactly_the_budget(cluster, files, tmp_path):
    config, state, earlier = SelectConfig(), {}, set()
    for number, weights in enumerate(([0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        facts = draw_round(*files, K, DrawPlan(config, 0, budget=30, round_size=10, held_out=5, weights=weights, **state), folder)
        rows = read(folder)
        ids = {row["row_id"] for row in rows}
        assert len(ids) == len(rows) == 10 * (number + 1)
        assert earlier <= ids
        assert {row["row_id"] for row in rows if row["new"]} == ids - earlier
        state, earlier = {"drawn": facts["drawn"], "targets": facts["targets"]}, ids
    # Targets 10.5, 4.5, 4.5, 10.5 after drawing 8, 2, 2, 8: halves round up for the first two clusters.
    assert facts["drawn"] == [11, 5, 4, 10]


def test_held_out_rows_are_the_same_in_every_round_and_never_drawn(cluster, files, tmp_path):
    held_out = []
    for size in (10, 100):
        folder = tmp_path / str(size)
        folder.mkdir()
        draw_round(*files, K, DrawPlan(SelectConfig(), 0, budget=100, round_size=size, held_out=7), folder)
        held_out.append({row["row_id"] for row in read(folder, "held_out")})
        assert not held_out[-1] & {row["row_id"] for row in read(folder)}
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 7


def test_a_budget_that_takes_the_whole_pool_leaves_nothing_held_out(cluster, files, tmp_path):
    facts = draw_round(*files, K, DrawPlan(SelectConfig(), 0, budget=ROWS, round_size=ROWS, held_out=7), tmp_path)
    assert facts["rows"] == ROWS
    assert read(tmp_path, "held_out") == []
    assert all(row["weight"] == 1 for row in read(tmp_path))


def test_a_pool_smaller_than_the_budget_is_refused(cluster, files, tmp_path):
    with pytest.raises(InputError, match="budget 121 exceeds the pool's 120 rows"):
        draw_round(*files, K, DrawPlan(SelectConfig(), 0, budget=121, round_size=121), tmp_path)


def test_rows_are_drawn_without_quality_too(cluster, files, tmp_path):
    draw_round(files[0], [], K, DrawPlan(SelectConfig(), 0, budget=12, round_size=12), tmp_path)
    assert [row["quality"] for row in read(tmp_path)] == [None] * 12
