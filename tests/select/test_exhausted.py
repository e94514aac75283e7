"""Rounds in which a cluster runs out of rows: weights and draw together."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import SelectConfig, WeightsConfig
from divsel_ray.select.gaps import RowGaps
from divsel_ray.select.plan import DrawFiles, DrawPlan
from divsel_ray.select.stage import draw_files
from divsel_ray.select.weights import move_weights
from tests.select.drawing import candidates, drawn, row_ids

SIZES = np.array([4, 100, 100])


def test_the_share_of_an_exhausted_cluster_is_spread_by_the_weights_of_the_others():
    pool = candidates(np.repeat([0, 1, 2], SIZES))
    first = drawn(pool, 20, weights=np.array([0.5, 0.25, 0.25]))
    assert first.drawn.tolist() == [4, 8, 8]
    second = drawn(pool, 40, weights=np.array([0.5, 0.4, 0.1]), drawn=first.drawn, targets=first.targets)
    # 20 new rows by 0.4 : 0.1, and not less for the second of the others because it had 8 before.
    assert (second.drawn - first.drawn).tolist() == [0, 16, 4]
    third = drawn(pool, 60, weights=np.array([0.8, 0.1, 0.1]), drawn=second.drawn, targets=second.targets)
    assert (third.drawn - second.drawn).tolist() == [0, 10, 10]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_round_is_split_by_the_weights_of_the_clusters_with_rows_left(data):
    k = data.draw(st.integers(2, 5))
    sizes = np.array(data.draw(st.lists(st.integers(1, 60), min_size=k, max_size=k)))
    pool = candidates(np.repeat(np.arange(k), sizes), k=k)
    size = max(1, int(sizes.sum()) // 4)
    have, targets = None, None
    for number in range(1, 5):
        raw = np.array(data.draw(st.lists(st.floats(0.05, 1), min_size=k, max_size=k)))
        done = drawn(pool, min(number * size, int(sizes.sum())), weights=raw / raw.sum(), drawn=have, targets=targets)
        new = done.drawn - (0 if have is None else have)
        open_ = done.drawn < sizes
        if open_.all():
            # Running totals are rounded, so a round's own share is off by less than one row at either end.
            assert np.abs(new - size * raw / raw.sum()).max() < 2
        elif open_.sum() > 1:
            ratio = new[open_] / raw[open_]
            assert (np.abs(new[open_] - ratio.mean() * raw[open_]) < 2 * (1 + raw[open_].max() / raw[open_].min())).all()
        assert done.targets.sum() == pytest.approx(done.drawn.sum())
        have, targets = done.drawn, done.targets


def test_a_job_of_rounds_exhausts_a_lagging_cluster_and_goes_on_to_exactly_the_budget(tmp_path):
    cluster = np.repeat(np.arange(3, dtype=np.int32), [12, 60, 60])
    ids = row_ids(len(cluster)).astype("U32")
    pq.write_table(pa.table({"row_id": ids, "cluster": cluster}), tmp_path / "clusters.parquet")
    files, state = DrawFiles([str(tmp_path / "clusters.parquet")]), {}
    config, weights, guards = WeightsConfig(max_step=None, shrinkage=False, tau=0.5), None, []
    generator = np.random.default_rng(0)
    for number in range(1, 5):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = DrawPlan(SelectConfig(), 0, [20 * number], reserved=80, weights=weights, **state)
        facts = draw_files(files, 3, plan, str(folder), float("inf"))
        selected = pq.read_table(folder / "selected.parquet")
        of_row = np.array(selected["cluster"])
        gap = generator.normal(size=len(of_row)) + np.array([3.0, 0.0, -0.5])[of_row]
        exhausted = np.array(facts["drawn"]) >= np.array(facts["capacity"])
        rows = RowGaps(gap, of_row, np.zeros(len(of_row)))
        update = move_weights(np.array(facts["weights"]), rows, exhausted, config, 0, number)
        if exhausted[0]:
            assert update.after[0] == pytest.approx(update.before[0])
        guards.append(update.guard[0])
        state, weights = {"drawn": facts["drawn"], "targets": facts["targets"]}, update.after.tolist()
    assert facts["rows"] == 80
    assert facts["drawn"][0] == 12
    assert guards[0] is None
    assert guards[-1] == "exhausted"
    # The others' shares follow their own gaps: the second lags behind the third.
    assert facts["drawn"][1] > facts["drawn"][2]
