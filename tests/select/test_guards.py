"""Guards on weights: floor, ceiling, step, and which of them held a cluster; by hand, and by what makes a projection one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divsel_ray.config import WeightsConfig
from divsel_ray.select.guards import guard_weights

OPEN = WeightsConfig(max_step=None)


def guarded(wanted, before, movable=None, left=None, **settings):
    movable = np.ones(len(before), bool) if movable is None else np.array(movable, bool)
    left = np.ones(len(before), bool) if left is None else np.array(left, bool)
    config = OPEN.model_copy(update=settings)
    after, bound = guard_weights(np.array(wanted, float), np.array(before, float), movable, left, config)
    return after, bound.tolist()


def test_without_guards_weights_are_what_was_asked_for():
    after, bound = guarded([1, 3], [0.5, 0.5])
    assert after == pytest.approx([0.25, 0.75])
    assert bound == [None, None]


def test_the_floor_is_a_share_of_the_uniform_weight_and_the_others_pay_for_it():
    after, bound = guarded([0, 1, 3], [0.2, 0.4, 0.4], floor=0.3)
    assert after == pytest.approx([0.1, 0.225, 0.675])
    assert bound == ["floor", None, None]


def test_the_ceiling_is_a_multiple_of_the_uniform_weight_and_the_others_gain():
    after, bound = guarded([8, 1, 1], [0.4, 0.3, 0.3], ceiling=1.5)
    assert after == pytest.approx([0.5, 0.25, 0.25])
    assert bound == ["ceiling", None, None]


def test_the_step_limit_is_a_factor_to_the_last_weight():
    after, bound = guarded([1, 9, 10], [0.4, 0.2, 0.4], max_step=2.0)
    assert after == pytest.approx([0.2, 0.36, 0.44][:1] + list(0.8 * np.array([9, 10]) / 19))
    assert bound == ["step", None, None]
    after, bound = guarded([1, 98, 1], [0.4, 0.2, 0.4], max_step=2.0)
    assert after == pytest.approx([0.3, 0.4, 0.3])
    assert bound == [None, "step", None]


def test_one_step_never_holds_a_cluster_above_the_ceiling():
    # The ceiling is 0.6; half of 0.9 would have been allowed by the step, but not more than 0.6; 0.1 may only double to 0.2.
    after, bound = guarded([9, 1], [0.9, 0.1], max_step=2.0, ceiling=1.2)
    assert after == pytest.approx([0.6, 0.4])
    assert bound == ["ceiling", "step"]


def test_one_step_never_holds_a_cluster_below_the_floor():
    after, bound = guarded([98, 1, 1], [0.98, 0.01, 0.01], max_step=1.5, floor=0.9)
    assert after == pytest.approx([0.4, 0.3, 0.3])
    assert bound == ["step", "floor", "floor"]


def test_a_cluster_that_may_not_move_keeps_its_weight_below_the_ceiling():
    after, bound = guarded([1, 9, 0], [0.3, 0.3, 0.4], movable=[1, 1, 0], ceiling=2.0)
    assert after == pytest.approx([0.06, 0.54, 0.4])
    assert bound == [None, None, None]


def test_a_cluster_that_may_not_move_comes_down_to_the_ceiling():
    after, bound = guarded([1, 1, 0], [0.1, 0.1, 0.8], movable=[1, 1, 0], ceiling=1.5)
    assert after == pytest.approx([0.25, 0.25, 0.5])
    assert bound == [None, None, "ceiling"]


def test_what_movable_clusters_cannot_hold_below_the_ceiling_goes_to_the_others():
    after, bound = guarded([1, 0, 0], [0.8, 0.15, 0.05], movable=[1, 0, 0], ceiling=1.5)
    assert after == pytest.approx([0.5, 0.375, 0.125])
    assert bound == ["ceiling", None, None]


def test_with_few_clusters_left_the_ceiling_is_an_equal_share_of_what_they_had():
    # A fourth of 1.2 is 0.3; two clusters that hold 0.9 cannot both be below it.
    after, bound = guarded([3, 1, 0, 0], [0.5, 0.4, 0.1, 0.0], movable=[1, 1, 0, 0], left=[1, 1, 0, 0], ceiling=1.2)
    assert after == pytest.approx([0.45, 0.45, 0.1, 0.0])
    assert bound == ["ceiling", "ceiling", None, None]


def test_a_floor_that_the_scored_clusters_cannot_afford_is_shared_alike():
    after, bound = guarded([1, 9, 0], [0.04, 0.06, 0.9], movable=[1, 1, 0], floor=0.6)
    assert after == pytest.approx([0.05, 0.05, 0.9])
    assert bound == ["floor", "floor", None]


def test_one_cluster_alone_is_never_bound():
    after, bound = guarded([5], [1.0], ceiling=1.5, floor=0.5, max_step=2.0)
    assert after.tolist() == [1.0]
    assert bound == [None]


def test_a_cluster_of_weight_zero_stays_there_without_a_floor():
    after, bound = guarded([0, 1, 3], [0.0, 0.5, 0.5], max_step=4.0)
    assert after == pytest.approx([0, 0.25, 0.75])
    assert bound == [None, None, None]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_free_clusters_share_one_factor_and_held_ones_would_go_beyond_their_bound(data):
    k = data.draw(st.integers(1, 9))
    numbers = st.lists(st.floats(0.01, 1.0), min_size=k, max_size=k)
    wanted, raw = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    before = raw / raw.sum()
    bounds = {"floor": st.sampled_from([0.0, 0.3, 0.8]), "ceiling": st.sampled_from([None, 1.3, 2.5])}
    floor, ceiling = (data.draw(bounds[name]) for name in ("floor", "ceiling"))
    max_step = data.draw(st.sampled_from([None, 1.2, 3.0]))
    after, bound = guarded(wanted, before, floor=floor, ceiling=ceiling, max_step=max_step)
    assert after.sum() == pytest.approx(1)
    assert (after >= floor / k * (1 - 1e-9)).all()
    assert ceiling is None or (after <= max(ceiling, 1) / k * (1 + 1e-9)).all()
    factor = after / wanted
    free = np.array([name is None for name in bound])
    if free.any():
        assert np.ptp(factor[free]) <= 1e-9 * factor[free].max()
    if free.any() and max_step is None:
        # What was pushed up has a larger factor than the free ones, what was held down a smaller one.
        pushed_up = np.array([name == "floor" for name in bound])
        held_down = np.array([name == "ceiling" for name in bound])
        assert (factor[pushed_up] >= factor[free].max() * (1 - 1e-6)).all()
        assert (factor[held_down] <= factor[free].min() * (1 + 1e-6)).all()


def test_what_nothing_else_can_hold_goes_to_a_cluster_of_weight_zero():
    after, bound = guarded([0, 1], [0.0, 1.0], ceiling=1.5)
    assert after == pytest.approx([0.25, 0.75])
    assert bound == [None, "ceiling"]
