from __future__ import annotations

import pytest

from divsel_ray.report import charts
from divsel_ray.report.facts import ClusterFacts
from divsel_ray.report.records import Mean


def test_cluster_bars_are_shares_of_the_pool_and_of_the_selection() -> None:
    figure = charts.cluster_figure([ClusterFacts(1, 30, 1, None), ClusterFacts(0, 10, 3, None)])
    pool, selected = figure.data
    assert list(pool.x) == list(selected.x) == ["1", "0"]
    assert list(pool.y) == [75.0, 25.0]
    assert list(selected.y) == [25.0, 75.0]
    assert list(selected.customdata) == [1, 3]


def test_weights_of_few_clusters_are_lines_in_percent() -> None:
    figure = charts.weights_figure([[0.25, 0.75], [0.5, 0.5]], order=[1, 0])
    assert [(trace.type, trace.name, list(trace.y)) for trace in figure.data] == [
        ("scatter", "cluster 1", [75.0, 50.0]),
        ("scatter", "cluster 0", [25.0, 50.0]),
    ]
    assert list(figure.data[0].x) == ["round 1", "afterwards"]


def test_weights_of_many_clusters_are_a_map_of_doublings() -> None:
    first = [0.1] * 10
    later = [0.2, 0.05, 0.0, *[0.75 / 7] * 7]
    [trace] = charts.weights_figure([first, later], order=list(range(10))).data
    assert trace.type == "heatmap"
    assert list(trace.z[0]) == [0.0] * 10
    assert list(trace.z[1][:3]) == [pytest.approx(1.0), pytest.approx(-1.0), None]
    assert trace.zmax == -trace.zmin == pytest.approx(1.0)


def test_gaps_skip_rounds_without_one_and_carry_standard_errors() -> None:
    figure = charts.gap_figure([None, Mean(1.0, 0.5, 4)], [None, None])
    [trace] = figure.data
    assert (trace.name, list(trace.x), list(trace.y), list(trace.error_y.array)) == ("selected rows", [1], [1.0], [0.5])


def test_losses_get_a_line_per_round() -> None:
    figure = charts.loss_figure([[3.0, 2.0], [3.0, 2.0, 1.0]])
    assert [(trace.name, list(trace.x)) for trace in figure.data] == [("round 1", [1, 2]), ("round 2", [1, 2, 3])]


def test_quality_histograms_share_bins_and_each_sums_to_all_rows() -> None:
    pool, selected = charts.quality_figure([0.0] * 3 + [4.0], [4.0]).data
    assert list(pool.x) == list(selected.x)
    assert (pool.y[0], pool.y[-1]) == (75.0, 25.0)
    assert sum(selected.y) == selected.y[-1] == 100.0


def test_quality_that_is_the_same_everywhere_has_a_histogram() -> None:
    pool, _ = charts.quality_figure([1.0, 1.0], [1.0]).data
    assert sum(pool.y) == 100.0
    pool, _ = charts.quality_figure([0.3, 0.1 + 0.2], []).data
    assert sum(pool.y) == 100.0


def test_a_figure_cannot_end_its_script_element() -> None:
    html = charts.embed(charts.loss_figure([[1.0]]).update_layout(title="</script><b>"), "x", library=False)
    assert html.count("</script>") == 1
    assert 'id="figure-x"' in html
