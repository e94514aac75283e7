"""`report.html`: a single file that opens offline and explains a run to readers who did not run it.

Texts of rows are untrusted. The template escapes all of them, figures contain none of them except the hover texts of the map
(see `html.hover_text`), and a content security policy allows only the scripts whose hashes it lists: plotly.js, the figures
and the colour switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
import yaml
from markupsafe import Markup

from divsel_ray.report import charts, html
from divsel_ray.report.card import CARD, dataset_card
from divsel_ray.report.cost import bill
from divsel_ray.report.examples import read_held_out, read_selected
from divsel_ray.report.facts import Run, read_run
from divsel_ray.report.points import Points, read_points
from divsel_ray.report.portraits import look_at_clusters
from divsel_ray.report.records import read_stages
from divsel_ray.report.sample import find_parts
from divsel_ray.report.signs import Sign, find_signs, looked_at, record_signs
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.store import write_text

PAGE = "report.html"
SELECTED_SHOWN = 6
HELD_OUT_SHOWN = 4
CLUSTERS_SHOWN = 100
PORTRAITS_SHOWN = 12
_TEMPLATE = "page.html.j2"
_MEASURES = {
    "clusters_covered": "Share of the clusters with a selected row",
    "cluster_entropy": "Evenness over clusters (entropy; 1 is even)",
    "nearest_distance": "Mean distance to the nearest other row (1 - cosine)",
    "copies": "Share of rows with a near copy (cosine of 0.95 or more)",
    "vendi": "Vendi score (effective number of different rows)",
    "tokens_mean": "Mean length in tokens",
    "source_distance": "Distance of the source mix from the pool's (0 is identical)",
}


_GUARDS = {
    "step": "was limited by the maximum step per round",
    "floor": "was raised to the floor",
    "ceiling": "was lowered to the ceiling",
    "disagreement": "kept its weight because the second opinion disagreed",
    "unscored": "kept its weight because none of its rows was scored",
    "exhausted": "had no rows left to draw",
}
_STEPS = {
    "min_tokens": "shorter than clean.min_tokens",
    "max_tokens": "longer than clean.max_tokens",
    "benchmark": "shares text with a benchmark",
    "near_duplicate": "nearly the same text as a kept row",
    "semantic_duplicate": "same meaning as another row of its cluster (by its vector)",
}


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and the dataset card `README.md` of a finished run; returns the page's path.

    The signs are also written to the run's manifest, as `signs`, and the points of the map to the folder `map`.

    The same folder gives the same bytes.

    Raises:
        InputError: the folder contains no finished run, or files of it are missing.
    """
    folder = Path(folder)
    run = read_run(folder)
    signs = find_signs(run)
    page = render_page(run, folder, signs)
    for name, text in ((PAGE, page), (CARD, dataset_card(run))):
        write_text(folder / name, text)
    record_signs(folder, signs)
    return folder / PAGE


def render_page(run: Run, folder: Path, signs: Sequence[Sign]) -> str:
    """Render the page as HTML."""
    order = [cluster.number for cluster in run.clustering.clusters]
    points = read_points(folder, directions=run.config.cluster.metric == "cosine")
    parts = find_parts(read_stages(folder)[1])
    figures = _embedded(_figures(run, order, points))
    return html.render(
        _TEMPLATE,
        list(figures.values()),
        run=run,
        config=run.config,
        refined=run.config.refine is not None,
        figures=figures,
        weights=_weights(run),
        weights_as_map=len(order) > charts.MOST_LINES,
        clusters=run.clustering.clusters[:CLUSTERS_SHOWN],
        points=points,
        look=look_at_clusters(parts, order[:PORTRAITS_SHOWN], len(order)) if parts else None,
        clustered=sum(cluster.size for cluster in run.clustering.clusters),
        selected=read_selected(folder, order, SELECTED_SHOWN),
        held_out=read_held_out(folder, HELD_OUT_SHOWN),
        settings=yaml.safe_dump(run.config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True),
        sampler=SAMPLERS[run.config.select.sampler].summary,
        by_cluster=getattr(SAMPLERS[run.config.select.sampler], "by_cluster", False),
        measures=_MEASURES,
        signs=signs,
        looked_at=looked_at(run),
        bill=bill(run),
        guards={
            name: text for name, text in _GUARDS.items() if any(one.update and name in one.update.guards for one in run.rounds)
        },
        steps=_STEPS,
        seconds=sum(timing.seconds for timing in run.timings),
    )


def _figures(run: Run, order: list[int], points: Points | None) -> dict[str, go.Figure]:
    """The run's figures by name, in page order, without those that have no data."""
    figures = {"map": charts.map_figure(points, order)} if points else {}
    trained = [one.training for one in run.rounds if one.training]
    if run.config.refine:
        held_out = [run.base_gap, *(one.held_out_gap for one in run.rounds)]
        figures["gaps"] = charts.gap_figure([None, *(one.gap for one in run.rounds)], held_out)
        figures["losses"] = charts.loss_figure([training.losses for training in trained])
        figures["weights"] = charts.weights_figure(_weights(run), order)
    figures["clusters"] = charts.cluster_figure(run.clustering.clusters)
    if run.quality and run.quality.pool and run.quality.selected:
        figures["quality"] = charts.quality_figure(run.quality.pool, run.quality.selected)
    return figures


def _weights(run: Run) -> list[list[float]]:
    """(rounds + 1) x (k,): the weights of every round, then the weights after the last one."""
    afterwards = [list(one.update.after) for one in run.rounds[-1:] if one.update]
    return [list(one.weights) for one in run.rounds] + afterwards


def _embedded(figures: Mapping[str, go.Figure]) -> dict[str, Markup]:
    """Figures as HTML; the first one on the page includes plotly.js."""
    return {name: charts.embed(figure, name, library=at == 0) for at, (name, figure) in enumerate(figures.items())}
