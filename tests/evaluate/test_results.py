import math

import numpy as np
import pytest

from divsel_ray.evaluate.results import Measured, cluster_figures, loss_figures, ratio


def _measured(model: str, nats: list[float], tokens: list[int]) -> Measured:
    return Measured(model, np.array(nats), np.array(tokens))


def test_a_mean_is_nats_over_tokens_with_the_error_of_a_ratio():
    # r = 12 / 6 = 2; residuals 2 - 2, 4 - 4, 6 - 6: no error at all.
    assert ratio(np.array([2.0, 4.0, 6.0]), np.array([1, 2, 3])) == (2.0, 0.0)
    # r = 9 / 4; residuals -0.25, 0.25 - 0.5 ... by hand: 2 - 2.25 = -0.25, 3 - 2.25 = 0.75, 4 - 4.5 = -0.5.
    value, error = ratio(np.array([2.0, 3.0, 4.0]), np.array([1, 1, 2]))
    assert value == 2.25
    assert error == pytest.approx(math.sqrt(3 / 2 * (0.0625 + 0.5625 + 0.25)) / 4)


def test_with_rows_of_one_length_the_error_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=20)
    _, error = ratio(values * 5, np.full(20, 5))
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(20))


def test_one_row_has_no_error():
    assert ratio(np.array([3.0]), np.array([2])) == (1.5, None)


def test_the_change_is_taken_row_by_row_against_the_first_model():
    first, second = _measured("a", [10.0, 2.0], [2, 2]), _measured("b", [9.0, 1.0], [2, 2])
    figures = loss_figures([first, second], np.arange(2))

    assert [(one.model, one.value, one.count) for one in figures] == [("a", 3.0, 2), ("b", 2.5, 2)]
    assert (figures[0].change, figures[0].change_error) == (None, None)
    # Both rows gained one nat, so the change is certain although the losses are not.
    assert (figures[1].change, figures[1].change_error) == (-0.5, 0.0)
    assert figures[1].standard_error == pytest.approx(2.0)


def test_models_that_cut_the_text_into_other_tokens_are_not_compared():
    figures = loss_figures([_measured("a", [10.0, 2.0], [2, 2]), _measured("b", [9.0, 1.0], [3, 2])], np.arange(2))
    assert figures[1].change is None


def test_clusters_have_means_of_their_own_and_the_largest_comes_first():
    measured = [_measured("a", [1.0, 4.0, 9.0], [1, 2, 3]), _measured("b", [2.0, 4.0, 6.0], [1, 2, 3])]
    found = cluster_figures(measured, np.array([7, 3, 7]))

    assert [(one["cluster"], one["rows"]) for one in found] == [(7, 2), (3, 1)]
    assert [[figure.value for figure in one["figures"]] for one in found] == [[10 / 4, 8 / 4], [2.0, 2.0]]


def test_a_row_that_the_chat_template_refuses_counts_for_nothing_in_its_cluster_or_in_all():
    measured = [_measured("a", [1.0, 0.0, 9.0, 0.0], [1, 0, 3, 0]), _measured("b", [2.0, 0.0, 6.0, 0.0], [1, 0, 3, 0])]
    first, second = loss_figures(measured, np.arange(4))
    assert (first.value, first.count, second.value, second.change) == (2.5, 2, 2.0, -0.5)
    refused = cluster_figures(measured, np.array([7, 3, 7, 3]))[0]
    assert [(one.count, one.standard_error, math.isnan(one.value)) for one in refused["figures"]] == [(0, None, True)] * 2
