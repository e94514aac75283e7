"""Cluster weights: Eq. 4-6 with the rules that make them well defined, by hand."""

import numpy as np
import pytest

from divsel_ray.config import WeightsConfig
from divsel_ray.select.gaps import RowGaps, cluster_gaps
from divsel_ray.select.weights import explain_weights, move_weights, update_weights

PLAIN = WeightsConfig(shrinkage=False, max_step=None)
NONE = np.zeros(2, bool)


def two_clusters(*, shrinkage=False, k=2, clusters=(0, 0, 1, 1)):
    return cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0]), np.array(clusters), k, shrinkage=shrinkage)


def updated(before, gaps, config=PLAIN, **others):
    return update_weights(np.array(before), gaps, config, **others)[0]


def held(before, gaps, config=PLAIN, **others):
    return update_weights(np.array(before), gaps, config, **others)[1].tolist()


def test_gaps_that_tell_no_clusters_apart_change_nothing():
    gaps = cluster_gaps(np.array([0.0, 10.0, 0.0, 10.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=True)
    assert gaps.between <= 0
    for rule in ("softmax", "paper", "memoryless"):
        assert updated([0.3, 0.7], gaps, WeightsConfig(update=rule)) == pytest.approx([0.3, 0.7])


def test_the_softmax_update_multiplies_by_exp_of_the_gap_over_tau():
    after = updated([0.5, 0.5], two_clusters())
    assert np.log(after[1] / after[0]) == pytest.approx(6 / np.sqrt(2))
    after = updated([0.2, 0.8], two_clusters(), PLAIN.model_copy(update={"tau": 3.0}))
    assert np.log(after[1] / after[0]) == pytest.approx(np.log(4) + 2 / np.sqrt(2))


def test_learned_direction_reverses_the_order():
    gaps = two_clusters(shrinkage=True)
    lagging = updated([0.5, 0.5], gaps, WeightsConfig())
    learned = updated([0.5, 0.5], gaps, WeightsConfig(direction="learned"))
    assert lagging[1] > 0.5 > learned[1]
    assert lagging == pytest.approx(learned[::-1])


def test_a_cluster_without_a_scored_row_keeps_its_weight():
    gaps = two_clusters(k=4, clusters=(0, 0, 2, 2))
    after = updated([0.1, 0.2, 0.3, 0.4], gaps)
    assert after[[1, 3]] == pytest.approx([0.2, 0.4])
    assert after[[0, 2]].sum() == pytest.approx(0.4)
    assert held([0.1, 0.2, 0.3, 0.4], gaps) == [None, "unscored", None, "unscored"]


def test_an_unscored_cluster_that_the_ceiling_brings_down_says_so():
    gaps, config = two_clusters(k=3), PLAIN.model_copy(update={"ceiling": 1.5})
    assert updated([0.1, 0.1, 0.8], gaps, config)[2] == pytest.approx(0.5)
    assert held([0.1, 0.1, 0.8], gaps, config)[2] == "ceiling"


def test_memoryless_forgets_the_weights():
    config = PLAIN.model_copy(update={"update": "memoryless"})
    assert updated([0.9, 0.1], two_clusters(), config) == pytest.approx(updated([0.2, 0.8], two_clusters(), config))


def test_the_paper_update_multiplies_by_the_gap_itself_when_all_are_positive():
    # Means 2 and 8: 0.6 x 2 and 0.4 x 8, of 4.4.
    after = updated([0.6, 0.4], two_clusters(), PLAIN.model_copy(update={"update": "paper"}))
    assert after == pytest.approx(np.array([1.2, 3.2]) / 4.4)


def test_the_paper_update_multiplies_by_the_shifted_gap_when_all_are_negative():
    gaps = cluster_gaps(np.array([-9.0, -7.0, -3.0, -1.0]), np.array([0, 0, 1, 1]), k=2, shrinkage=False)
    after = updated([0.5, 0.5], gaps, PLAIN.model_copy(update={"update": "paper"}))
    # Effects -3 and 3 in units of sqrt(2), shifted to 0.01 and 6 / sqrt(2) + 0.01.
    assert after[1] / after[0] == pytest.approx((6 / np.sqrt(2) + 0.01) / 0.01)


def test_no_scored_row_at_all_leaves_the_weights():
    gaps = cluster_gaps(np.array([]), np.array([], dtype=int), k=2, shrinkage=True)
    assert updated([0.25, 0.75], gaps, WeightsConfig()).tolist() == [0.25, 0.75]


def test_an_exhausted_cluster_keeps_its_weight_and_the_others_share_theirs():
    gaps = cluster_gaps(np.array([1.0, 3.0, 7.0, 9.0, 0.0, 2.0]), np.repeat([0, 1, 2], 2), 3, shrinkage=False)
    spent = np.array([False, True, False])
    after, guard = update_weights(np.array([0.3, 0.4, 0.3]), gaps, PLAIN, exhausted=spent)
    assert after[1] == pytest.approx(0.4)
    assert guard[1] == "exhausted"
    # Means 2 and 1 in units of sqrt(2): the pooled variance within is (2 + 2 + 2) / 3 = 2.
    assert np.log(after[0] / after[2]) == pytest.approx(1 / np.sqrt(2))


def test_only_clusters_move_whose_signals_name_the_same_direction():
    values, cluster = np.array([0.0, 2.0, 4.0, 6.0, 8.0, 10.0]), np.repeat([0, 1, 2], 2)
    first = cluster_gaps(values, cluster, 3, shrinkage=False)  # effects down, 0, up
    second = cluster_gaps(np.array([0.0, 1.0, 9.0, 9.5, 7.0, 8.0]), cluster, 3, shrinkage=False)  # down, up, up
    before = [0.2, 0.5, 0.3]
    after = updated(before, first, second=second)
    assert held(before, first, second=second) == [None, "disagreement", None]
    assert after[1] == pytest.approx(0.5)
    assert after[0] < 0.2
    assert after[2] > 0.3


def test_a_cluster_that_the_second_signal_did_not_score_keeps_its_weight():
    values, cluster = np.array([1.0, 3.0, 7.0, 9.0, 4.0, 6.0]), np.repeat([0, 1, 2], 2)
    second = cluster_gaps(np.where(cluster == 0, np.nan, values), cluster, 3, shrinkage=False)
    assert held([0.2, 0.5, 0.3], cluster_gaps(values, cluster, 3, shrinkage=False), second=second)[0] == "disagreement"


def rows(gap, cluster, longer=None, second=None):
    longer = np.zeros(len(gap)) if longer is None else np.array(longer, float)
    return RowGaps(np.array(gap, float), np.array(cluster), longer, None if second is None else np.array(second, float))


def test_every_cluster_is_explained_by_its_numbers_and_what_held_it():
    scored = rows([1, 3, 7, 9, np.nan], [0, 0, 1, 1, 1], second=[0, 2, 4, 6, np.nan])
    config = WeightsConfig(shrinkage=False, max_step=2.0)
    update = move_weights(np.array([0.2, 0.2, 0.6]), scored, np.zeros(3, bool), config, 0, 1)
    table = explain_weights([5, 6, 7], update)
    assert [row["guard"] for row in table] == ["step", None, "unscored"]
    assert [row["scored"] for row in table] == [2, 2, 0]
    assert [row["gaps_of"] for row in table] == [0, 1, 2]
    assert table[1]["mean_gap"] == pytest.approx(8 / np.sqrt(2))
    assert table[1]["second_gap"] == pytest.approx(5 / np.sqrt(2))
    assert table[1]["standard_error"] == pytest.approx(np.sqrt(1 / 2))
    assert (table[2]["mean_gap"], table[2]["shrunk_gap"], table[2]["second_gap"]) == (None, None, None)
    assert [row["after"] for row in table] == pytest.approx([0.1, 0.3, 0.6])


def test_the_facts_of_an_update_by_hand():
    scored = rows([1, 3, 7, 9], [0, 0, 1, 1], longer=[1, 3, 7, 9], second=[2, 4, 1, 3])
    config = WeightsConfig(shrinkage=False, max_step=None)
    facts = move_weights(np.array([0.5, 0.5]), scored, NONE, config, 0, 1).facts(config)
    assert facts["overall_gap"] == pytest.approx(5)
    assert facts["unit"] == pytest.approx(np.sqrt(2))
    assert facts["length_slope"] == pytest.approx(1)
    assert facts["length_share"] == pytest.approx(1)
    assert facts["agreement"] == 0
    assert facts["moved"] == 0
    assert facts["guards"] == {"disagreement": 2}
    assert (facts["scored_rows"], facts["scored_clusters"], facts["shuffled"]) == (4, 2, False)


def test_what_moved_is_the_weight_that_changed_hands():
    facts = move_weights(np.array([0.5, 0.5]), rows([1, 3, 7, 9], [0, 0, 1, 1]), NONE, PLAIN, 0, 1).facts(PLAIN)
    # Gaps 6 / sqrt(2) apart: the second cluster ends at 1 / (1 + exp(-6 / sqrt(2))).
    assert facts["weights"][1] == pytest.approx(1 / (1 + np.exp(-6 / np.sqrt(2))))
    assert facts["moved"] == pytest.approx(facts["weights"][1] - 0.5)
    assert facts["between"] == pytest.approx(8.5)


def test_length_control_leaves_nothing_of_a_gap_that_is_all_length():
    scored = rows([1, 3, 7, 9], [0, 0, 1, 1], longer=[1, 3, 7, 9])
    moved = move_weights(np.array([0.5, 0.5]), scored, NONE, PLAIN, 0, 1)
    controlled = move_weights(np.array([0.5, 0.5]), scored, NONE, PLAIN.model_copy(update={"length_control": True}), 0, 1)
    assert moved.after[1] > 0.9
    assert controlled.after == pytest.approx([0.5, 0.5])
    assert controlled.gaps.overall * controlled.gaps.unit == pytest.approx(5)


def test_the_shuffled_control_gives_clusters_one_anothers_gaps_and_says_so():
    generator = np.random.default_rng(0)
    cluster = np.repeat(np.arange(8), 4)
    scored = rows(generator.normal(size=32) + cluster, cluster)
    before, config = np.full(9, 1 / 9), WeightsConfig(shuffled=True, max_step=None)
    updates = [move_weights(before, scored, np.zeros(9, bool), config, 0, number) for number in (1, 2)]
    plain = move_weights(before, scored, np.zeros(9, bool), WeightsConfig(max_step=None), 0, 1)
    for update in updates:
        assert sorted(update.after) == pytest.approx(sorted(plain.after))
        assert update.after[:8] == pytest.approx(plain.after[update.source[:8]])
        assert update.facts(config)["shuffled"]
        assert [row["gaps_of"] for row in explain_weights([4] * 9, update)] == update.source.tolist()
        assert update.source[8] == 8
    assert updates[0].source.tolist() != updates[1].source.tolist() != list(range(9))
