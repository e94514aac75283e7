"""Rows that are set aside change no cluster's share of the budget, and every weight says what its row stands for."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import SelectConfig
from divsel_ray.select.plan import DrawFiles, DrawPlan, rows_to_score
from divsel_ray.select.stage import draw_files
from tests.select.drawing import row_ids

SIZES = (600, 200, *[20] * 10)
"""One cluster of three fifths of the pool, one of a fifth, and small ones."""
ROWS = sum(SIZES)


@pytest.fixture
def files(tmp_path):
    cluster = np.random.default_rng(1).permutation(np.repeat(np.arange(len(SIZES), dtype=np.int32), SIZES))
    quality = np.random.default_rng(2).normal(size=ROWS)
    pq.write_table(pa.table({"row_id": row_ids(ROWS).astype("U32"), "cluster": cluster}), tmp_path / "clusters.parquet")
    pq.write_table(pa.table({"row_id": row_ids(ROWS).astype("U32"), "quality": quality}), tmp_path / "quality.parquet")
    return DrawFiles([str(tmp_path / "clusters.parquet")], [str(tmp_path / "quality.parquet")])


def scored_only(files, folder, plan, seed=0):
    """The files with all rows named as unscored but as many of each cluster as the plan has scored."""
    table = pq.read_table(files.clusters[0])
    order = np.random.default_rng(seed).permutation(ROWS)
    cluster, counts = table["cluster"].to_numpy(), rows_to_score(SIZES, plan)
    place = np.empty(ROWS, int)
    for j in range(len(SIZES)):
        members = order[cluster[order] == j]
        place[members] = np.arange(len(members))
    pq.write_table(table.filter(pa.array(place >= counts[cluster])).select(["row_id"]), folder / "unscored.parquet")
    return replace(files, unscored=[str(folder / "unscored.parquet")])


def draw(files, folder, plan):
    folder.mkdir(exist_ok=True)
    facts = draw_files(files, len(SIZES), plan, str(folder), float("inf"))
    return facts["drawn"], pq.read_table(folder / "selected.parquet")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SelectConfig(), [60, 20, *[2] * 10]),
        (SelectConfig(allocation="equal"), [9, 9, 9, 9, *[8] * 8]),
    ],
)
@pytest.mark.parametrize("oversample", [1, 2, 3])
def test_scoring_a_sample_of_the_pool_leaves_every_share_as_it_was(files, tmp_path, config, expected, oversample):
    plan = DrawPlan(config, 0, [100])
    sample = replace(plan, budgets=[100 * oversample])
    assert draw(files, tmp_path / "all", plan)[0] == expected
    assert draw(scored_only(files, tmp_path, sample), tmp_path / "some", plan)[0] == expected


@pytest.mark.parametrize("probe", [1, 4, 8])
def test_a_probe_leaves_every_share_as_it_was(files, tmp_path, probe):
    plan = DrawPlan(SelectConfig(), 0, [100], held_out=20, probe=probe, reserved=100)
    assert draw(files, tmp_path / "out", plan)[0] == [60, 20, *[2] * 10]


@pytest.mark.parametrize("sampler", ["kmrandom", "random"])
def test_weights_of_rows_drawn_alike_add_up_to_the_pool(files, tmp_path, sampler):
    _, selected = draw(files, tmp_path / "out", DrawPlan(SelectConfig(sampler=sampler), 0, [100]))
    assert sum(selected["weight"].to_pylist()) == pytest.approx(ROWS)
    assert set(selected["weight"].to_pylist()) == {10.0}


def test_weights_know_of_the_rows_that_were_not_scored_held_out_or_in_the_probe(files, tmp_path):
    plan = DrawPlan(SelectConfig(sampler="kmrandom"), 0, [100], held_out=30, probe=2, reserved=100)
    sample = replace(plan, budgets=[300])
    _, selected = draw(scored_only(files, tmp_path, sample), tmp_path / "out", plan)
    assert sum(selected["weight"].to_pylist()) == pytest.approx(ROWS)


def test_weights_by_quality_add_up_to_the_pool_on_average(files, tmp_path):
    plan = DrawPlan(SelectConfig(), 0, [240])
    totals = []
    for seed in range(60):
        sampled = scored_only(files, tmp_path, replace(plan, budgets=[600]), seed)
        _, selected = draw(sampled, tmp_path / str(seed), replace(plan, seed=seed))
        totals.append(sum(selected["weight"].to_pylist()))
    assert np.mean(totals) == pytest.approx(ROWS, abs=4 * np.std(totals) / np.sqrt(len(totals)))


def test_each_nested_budget_has_the_weights_and_reasons_of_its_own_draw(files, tmp_path):
    nested = DrawPlan(SelectConfig(), 0, [50, 100, 400])
    draw(files, tmp_path / "nested", nested)
    table = pq.read_table(tmp_path / "nested" / "nested.parquet")
    for budget in (50, 100):
        of_budget = table.filter(pa.array(table["of"].to_numpy() == budget))
        _, alone = draw(files, tmp_path / str(budget), replace(nested, budgets=[budget]))
        for name in ("row_id", "weight", "why"):
            assert of_budget[name].to_pylist() == alone[name].to_pylist()
