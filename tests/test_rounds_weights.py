"""The weights of a round, read from committed draws and gaps."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import SelectConfig
from divsel_ray.config.files import build_config
from divsel_ray.errors import JobError
from divsel_ray.rounds import read_gaps, update_of_round
from divsel_ray.stages import Before, plan_draw
from divsel_ray.store import Store
from divsel_ray.verify import _compare_weights
from tests.select.drawing import row_ids

IDS = row_ids(8).astype("U32").tolist()


def job(**refine):
    values = {"budget": 4, "pool": {"data": "x.jsonl"}, "reward": {"model": "some/model"}}
    return build_config({**values, "refine": {"rounds": 2, "train": {"model": "some/model"}, **refine}}, "test")


def committed(root, name, facts, tables):
    stage = Store(root).stage(name, 1, {}, [])
    stage.start()
    for file, columns in tables.items():
        pq.write_table(pa.table(columns), stage.folder / f"{file}.parquet")
    stage.commit(facts)
    return stage


@pytest.fixture
def stages(tmp_path):
    """Rows 0-3 selected, 4-5 probe, 6-7 held out; clusters alternate; every row is scored, in another order."""
    cluster = np.arange(8, dtype=np.int32) % 2
    facts = {"weights": [0.5, 0.5], "drawn": [2, 2], "capacity": [2, 9]}
    draw = committed(
        tmp_path,
        "round-1/draw",
        facts,
        {
            "selected": {"row_id": IDS[:4], "cluster": cluster[:4]},
            "probe": {"row_id": IDS[4:6], "cluster": cluster[4:6]},
            "held_out": {"row_id": IDS[6:]},
        },
    )

    def scored(rows, **columns):
        order = rows[::-1]
        values = {
            "row_id": [IDS[row] for row in order],
            "gap": pa.array([float(row) if row != 2 else None for row in order], pa.float64()),
            "second_gap": pa.array([-float(row) for row in order], pa.float64()),
            "gold_tokens": [10 + row for row in order],
            "generated_tokens": [10.5] * len(order),
            "held_out": [row >= 6 for row in order],
        }
        return committed(tmp_path, "round-1/score", {}, {"gaps": {**values, **columns}})

    return draw, scored


def test_selected_rows_move_the_weights_in_the_order_of_their_ids(stages):
    draw, scored = stages
    rows = read_gaps(draw, scored([0, 1, 2, 3, 6, 7]), job().refine)
    assert rows.gap.tolist() == pytest.approx([0, 1, np.nan, 3], nan_ok=True)
    assert rows.cluster.tolist() == [0, 1, 0, 1]
    assert rows.longer.tolist() == [-0.5, 0.5, 1.5, 2.5]
    assert rows.second is None


def test_probe_rows_move_the_weights_where_they_are_scored(stages):
    draw, scored = stages
    rows = read_gaps(draw, scored([4, 5, 6, 7]), job(scored="probe").refine)
    assert rows.gap.tolist() == [4, 5]
    assert rows.cluster.tolist() == [0, 1]


def test_a_second_signal_is_read_where_it_is_asked_for(stages):
    draw, scored = stages
    rows = read_gaps(draw, scored([0, 1, 2, 3]), job(second={"model": "another/model"}).refine)
    assert rows.second.tolist() == [0, -1, -2, -3]


def test_a_cluster_without_a_row_left_is_known_from_the_draw(stages):
    draw, scored = stages
    update = update_of_round(job(), 1, draw, scored([0, 1, 2, 3]))
    assert update.guard.tolist() == ["exhausted", None]


def test_verify_refuses_weights_that_the_gaps_do_not_give(stages, tmp_path):
    draw, scored = stages
    gaps, config = scored([0, 1, 2, 3]), job(weights={"shuffled": True, "length_control": True})
    right = update_of_round(config, 1, draw, gaps).facts(config.refine.weights)
    stage = committed(tmp_path, "round-1/weights", right, {})
    _compare_weights(config, 1, Before(draw, draw, stage), gaps)
    wrong = committed(tmp_path / "other", "round-1/weights", {"weights": [0.6, 0.4]}, {})
    with pytest.raises(JobError, match="the weights differ"):
        _compare_weights(config, 1, Before(draw, draw, wrong), gaps)


def test_uniform_weights_of_the_first_round_take_the_place_of_given_ones():
    config = job(weights={"initial": "uniform"})
    given = config.model_copy(update={"select": SelectConfig(allocation="given", weights=[9, 1])})
    plan = plan_draw(given, 4, None).config
    assert (plan.allocation, plan.weights) == ("equal", None)


def test_a_plan_has_a_probe_only_where_it_is_scored():
    assert plan_draw(job(probe=3), 4, None).probe == 0
    assert plan_draw(job(probe=3, scored="probe"), 4, None).probe == 3
