"""The probe: a few rows of each cluster that score the model and are never selected."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig
from divsel_ray.select.plan import DrawFiles, DrawPlan
from divsel_ray.select.pool_rows import share_held_out, share_probe
from divsel_ray.select.stage import draw_files
from tests.select.drawing import row_ids

SIZES = (40, 20, 6, 1)
ROWS = sum(SIZES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    cluster = np.repeat(np.arange(len(SIZES), dtype=np.int32), SIZES)
    table = {"row_id": row_ids(ROWS).astype("U32"), "cluster": np.random.default_rng(1).permutation(cluster)}
    pq.write_table(pa.table(table), folder / "clusters.parquet")
    return DrawFiles([str(folder / "clusters.parquet")])


def drawn(files, folder, size, **settings):
    """A draw: its facts, and the ids of the selected, held-out and probe rows."""
    folder.mkdir(exist_ok=True)
    plan = DrawPlan(settings.pop("config", SelectConfig()), 0, [size], **settings)
    facts = draw_files(files, len(SIZES), plan, str(folder), float("inf"))
    names = ("selected", "held_out", *(["probe"] if plan.probe else []))
    return facts, *(set(pq.read_table(folder / f"{name}.parquet")["row_id"].to_pylist()) for name in names)


@pytest.mark.parametrize(("wanted", "spare", "count"), [(5, 100, 5), (5, 3, 3), (80, 100, ROWS)])
def test_held_out_rows_are_as_many_as_wanted_can_be_spared_and_are_there(wanted, spare, count):
    assert share_held_out(np.array([ROWS]), wanted, spare).tolist() == [count]


def test_the_probe_has_its_rows_of_every_cluster_but_at_most_half_of_it():
    assert share_probe(np.array(SIZES), 4, 100).tolist() == [4, 4, 3, 0]
    assert share_probe(np.array(SIZES), 1, 100).tolist() == [1, 1, 1, 0]


def test_a_probe_that_is_short_of_rows_takes_turns_and_the_largest_clusters_first():
    assert share_probe(np.array([6, 40, 20]), 4, 2).tolist() == [0, 1, 1]
    assert share_probe(np.array([6, 40, 20]), 4, 5).tolist() == [1, 2, 2]
    assert share_probe(np.array([6, 40, 20]), 4, 0).tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 9), st.integers(0, 200))
def test_a_probe_is_as_large_as_its_limits_allow(sizes, wanted, spare):
    counts = share_probe(np.array(sizes), wanted, spare)
    most = np.minimum(wanted, np.array(sizes) // 2)
    assert (counts <= most).all()
    assert counts.sum() == min(spare, most.sum())


def test_probe_rows_are_the_same_in_every_round_with_their_clusters_and_never_drawn(files, tmp_path):
    rounds = [drawn(files, tmp_path / str(size), size, held_out=5, probe=3, reserved=50) for size in (10, 50)]
    for facts, selected, held_out, probe in rounds:
        assert (facts["held_out"], facts["probe"], facts["rows"]) == (5, len(probe), len(selected))
        assert not selected & probe
        assert not held_out & probe
        assert not selected & held_out
    assert rounds[0][3] == rounds[1][3]
    probe = pq.read_table(tmp_path / "10" / "probe.parquet")
    of_row = dict(zip(*pq.read_table(files.clusters[0]).to_pydict().values(), strict=True))
    assert probe["cluster"].to_pylist() == [of_row[row_id] for row_id in probe["row_id"].to_pylist()]
    assert np.bincount(probe["cluster"]).tolist()[:2] == [3, 3]


def test_capacity_is_what_is_left_of_each_cluster_beside_held_out_and_probe_rows(files, tmp_path):
    facts, *_ = drawn(files, tmp_path / "a", 10, probe=3, reserved=10)
    assert facts["capacity"] == [37, 17, 3, 1]
    assert facts["excluded"] == 0
    assert drawn(files, tmp_path / "b", 10)[0]["capacity"] == list(SIZES)


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(1, ROWS), held_out=st.integers(0, 20), probe=st.integers(1, 8))
def test_exactly_the_budget_is_drawn_whatever_is_kept_out(files, tmp_path_factory, budget, held_out, probe):
    folder = tmp_path_factory.mktemp("draw")
    facts, selected, apart, kept = drawn(files, folder, budget, held_out=held_out, probe=probe, reserved=budget)
    assert len(selected) == facts["rows"] == budget
    assert len(apart) == min(held_out, ROWS - budget)
    assert not (selected | apart) & kept
    assert len(kept) <= ROWS - budget - len(apart)


def test_a_row_that_must_be_selected_is_never_in_the_probe(files, tmp_path):
    ids = sorted(drawn(files, tmp_path / "a", 10, probe=3, reserved=10)[3])
    (tmp_path / "in.txt").write_text("\n".join(ids[:4]))
    config = SelectConfig(include=str(tmp_path / "in.txt"))
    _, selected, _, probe = drawn(files, tmp_path / "b", 10, probe=3, reserved=10, config=config)
    assert set(ids[:4]) <= selected
    assert not set(ids[:4]) & probe


def test_without_a_probe_there_is_no_file_of_it(files, tmp_path):
    drawn(files, tmp_path / "a", 10, held_out=3, reserved=10)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["held_out.parquet", "selected.parquet"]
