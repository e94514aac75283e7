"""What holds of every update of the weights, whatever the gaps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from divsel_ray.config import WeightsConfig
from divsel_ray.select.gaps import RowGaps, cluster_gaps
from divsel_ray.select.weights import agreeing, move_weights

RULES = ("softmax", "paper", "memoryless")


@st.composite
def rounds(draw, largest: float = 100.0):
    """Weights of k clusters, and scored rows with ties and failures in some of them."""
    k, n = draw(st.integers(1, 9)), draw(st.integers(0, 30))
    gap = draw(st.lists(st.sampled_from([0.0, 1.0, np.nan]) | st.floats(-largest, largest), min_size=n, max_size=n))
    cluster = draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    longer = draw(st.lists(st.integers(-50, 50), min_size=n, max_size=n))
    raw = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=k, max_size=k)))
    return raw / raw.sum(), RowGaps(np.array(gap, float), np.array(cluster, np.int64), np.array(longer, float))


def configs(**fixed):
    """Settings of the update and its guards."""
    free = {
        "update": st.sampled_from(RULES),
        "direction": st.sampled_from(["lagging", "learned"]),
        "shrinkage": st.booleans(),
        "tau": st.sampled_from([0.1, 1.0, 5.0]),
        "floor": st.sampled_from([0.0, 0.2, 0.9]),
        "ceiling": st.sampled_from([None, 1.2, 3.0]),
        "max_step": st.sampled_from([None, 1.5, 4.0]),
        "length_control": st.booleans(),
        "shuffled": st.booleans(),
    }
    return st.fixed_dictionaries({**free, **{name: st.just(value) for name, value in fixed.items()}}).map(
        lambda values: WeightsConfig(**values)
    )


def moved(before, rows, config, exhausted=None):
    spent = np.zeros(len(before), bool) if exhausted is None else exhausted
    return move_weights(before, rows, spent, config, 0, 1)


def clear(update, config):
    """Whether rounding decides nothing: whether clusters differ is clear, and length does not explain all there is."""
    between = update.gaps.between
    return (between == 0 or abs(between) > 1e-6) and (not config.length_control or update.trend.share < 1 - 1e-6)


@settings(max_examples=200, deadline=None)
@given(rounds(1e6), configs(), st.data())
def test_weights_are_a_distribution_within_the_guards(round_, config, data):
    before, rows = round_
    k = len(before)
    spent = np.array(data.draw(st.lists(st.booleans(), min_size=k, max_size=k)))
    update = moved(before, rows, config, spent)
    after, scored = update.after, update.gaps.scored > 0
    assert after.sum() == pytest.approx(1.0)
    assert np.isfinite(after).all()
    assert (after >= 0).all()
    assert after[spent] == pytest.approx(before[spent])
    movable = scored & ~spent
    if config.ceiling is not None and not spent.all():
        few = before[~spent].sum() / (~spent).sum()
        assert (after[~spent] <= max(config.ceiling / k, few) * (1 + 1e-6)).all()
    else:
        assert after[~movable] == pytest.approx(before[~movable])
    if movable.any():
        assert (after[movable] >= min(config.floor / k, after[movable].sum() / movable.sum()) * (1 - 1e-6)).all()
    if config.max_step is not None and config.floor == 0 and config.ceiling is None:
        assert (after <= before * config.max_step * (1 + 1e-6)).all()
        assert (after >= before / config.max_step * (1 - 1e-6)).all()
    assert set(update.guard) <= {None, "floor", "ceiling", "step", "unscored", "exhausted"}


@settings(max_examples=100, deadline=None)
@given(rounds(), configs(floor=0.0, ceiling=None, shuffled=False))
def test_a_larger_gap_never_gets_a_smaller_factor(round_, config):
    before, rows = round_
    update = moved(before, rows, config)
    seen = np.flatnonzero(update.gaps.scored > 0)
    assume(config.update != "memoryless" or not len(seen) or np.ptp(before[seen]) == 0)
    ordered = seen[np.argsort(update.gaps.effect[seen], kind="stable")]
    factors = (update.after / before)[ordered]
    steps = np.diff(factors) if config.direction == "lagging" else -np.diff(factors)
    assert (steps >= -1e-9 * (1 + factors[1:])).all()


@settings(max_examples=80, deadline=None)
@given(rounds(), st.sampled_from(["lagging", "learned"]), st.booleans())
def test_memoryless_weights_follow_the_gaps_and_not_the_weights(round_, direction, shrinkage):
    before, rows = round_
    config = WeightsConfig(update="memoryless", direction=direction, shrinkage=shrinkage, max_step=None)
    update = moved(before, rows, config)
    seen = np.flatnonzero(update.gaps.scored > 0)
    assume(len(seen) and update.gaps.effect[seen].any())
    steps = np.diff(update.after[seen[np.argsort(update.gaps.effect[seen], kind="stable")]])
    assert ((steps if direction == "lagging" else -steps) >= -1e-12).all()


@settings(max_examples=100, deadline=None)
@given(rounds(), configs(shuffled=False), st.floats(-100, 100), st.sampled_from([0.01, 3.0, 1e4]))
def test_a_constant_added_to_all_gaps_or_another_unit_changes_nothing(round_, config, constant, factor):
    before, rows = round_
    update = moved(before, rows, config)
    assume(clear(update, config) and (not np.isfinite(rows.gap).any() or update.gaps.unit > 1e-6))
    other = replace(rows, gap=factor * rows.gap + constant)
    assert moved(before, other, config).after == pytest.approx(update.after, abs=1e-5)


@settings(max_examples=80, deadline=None)
@given(rounds(), configs(floor=0.0, ceiling=None), st.floats(-1e3, 1e3))
def test_equal_gaps_leave_the_weights(round_, config, value):
    before, rows = round_
    equal = replace(rows, gap=np.where(np.isnan(rows.gap), np.nan, value))
    assert moved(before, equal, config).after == pytest.approx(before)


@settings(max_examples=80, deadline=None)
@given(rounds(), configs())
def test_failed_scores_count_like_rows_that_are_not_there(round_, config):
    before, rows = round_
    known = np.isfinite(rows.gap)
    fewer = RowGaps(rows.gap[known], rows.cluster[known], rows.longer[known])
    assert moved(before, rows, config).after.tolist() == moved(before, fewer, config).after.tolist()


@settings(max_examples=80, deadline=None)
@given(rounds(), configs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(round_, config, random):
    before, rows = round_
    first = moved(before, rows, config)
    assume(clear(first, config))
    order = list(range(len(rows.gap)))
    random.shuffle(order)
    other = RowGaps(rows.gap[order], rows.cluster[order], rows.longer[order])
    assert moved(before, other, config).after == pytest.approx(first.after, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(rounds(), configs(floor=0.0, ceiling=None), st.sampled_from([1.0, 7.0]))
def test_an_identical_second_signal_changes_nothing_and_a_reversed_one_stops_everything(round_, config, unit):
    before, rows = round_
    alone = moved(before, rows, config)
    same = moved(before, replace(rows, second=rows.gap), config)
    assert same.after.tolist() == alone.after.tolist()
    scored = alone.gaps.scored > 0
    assert agreeing(same.gaps, same.second)[scored].all()
    reversed_ = moved(before, replace(rows, second=-rows.gap), config)
    effect = alone.gaps.effect
    still = scored & (effect != 0)
    assert reversed_.after == pytest.approx(before)
    assert (reversed_.guard[still] == "disagreement").all()


@settings(max_examples=80, deadline=None)
@given(rounds(), configs(shuffled=True))
def test_shuffled_feedback_is_a_permutation_of_the_statistics(round_, config):
    before, rows = round_
    plain = cluster_gaps(rows.gap, rows.cluster, len(before), shrinkage=config.shrinkage)
    update = moved(before, rows, config.model_copy(update={"length_control": False}))
    seen = plain.scored > 0
    assert ((update.gaps.scored > 0) == seen).all()
    for name in ("scored", "mean", "standard_error", "effect"):
        assert sorted(getattr(update.gaps, name)[seen]) == sorted(getattr(plain, name)[seen])
        assert getattr(update.gaps, name)[seen].tolist() == getattr(plain, name)[update.source][seen].tolist()
