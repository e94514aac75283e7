"""Plotly figures from plain numbers.

All strings in the figures are defined here. No row text, file name or model name enters a figure, except the beginnings of
prompts on the map, which `html.hover_text` escapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup

from divsel_ray.report.facts import ClusterFacts
from divsel_ray.report.html import hover_text
from divsel_ray.report.points import Points
from divsel_ray.report.records import Mean

POOL, SELECTED, HELD_OUT = "#8a94a3", "#2f6fb0", "#d9772b"
_LINES = ("#2f6fb0", "#d9772b", "#3a9a6f", "#b0508f", "#8a6d3b", "#5f9ed1", "#c7484f", "#6b7280")
_DIVERGING = [[0.0, "#c7602a"], [0.5, "#dfe3e8"], [1.0, "#2f6fb0"]]
_BINS = 40
_FEW_STEPS = 15
_MAP_COLORS = "#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split()
"""Ten colours that are distinguishable with colour blindness (Petroff 2021, arXiv 2107.02270)."""
_MAP_SYMBOLS = ("circle", "diamond", "square", "triangle-up")
"""Clusters use the colours in turn, with the next shape after all colours are used."""
_NAMED = 12
"""Number of clusters in the map's legend."""
_APART, _CLEAR = 0.06, 0.025
"""Minimum distances of a cluster's number from other numbers and from selected rows, as shares of the map."""
AXIS = {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False, "automargin": True, "fixedrange": True}
MOST_LINES = len(_LINES)
"""Maximum number of clusters for which weights are drawn as lines."""


def cluster_figure(clusters: Sequence[ClusterFacts]) -> go.Figure:
    """Each cluster's share of the pool next to its share of the selection, in percent, in the order given."""
    names = [str(cluster.number) for cluster in clusters]
    figure = _figure("cluster", "% of rows", barmode="group", bargap=0.25)
    for label, color, counts in (
        ("pool", POOL, [cluster.size for cluster in clusters]),
        ("selected", SELECTED, [cluster.selected for cluster in clusters]),
    ):
        total = max(1, sum(counts))
        shares = [100 * count / total for count in counts]
        hover = "cluster %{x}: %{customdata:,} rows, %{y:.1f} %"
        figure.add_bar(x=names, y=shares, customdata=counts, name=label, marker_color=color, hovertemplate=hover)
    return figure.update_xaxes(type="category")


def weights_figure(weights: Sequence[Sequence[float]], order: Sequence[int]) -> go.Figure:
    """Cluster weights over rounds; the last entry contains the weights after the last round.

    Draws lines for a few clusters, otherwise a heat map of log2(weight / first weight).

    Args:
        weights: (rounds + 1) x (k,).
        order: cluster numbers, in display order.
    """
    rounds = [*(f"round {number}" for number in range(1, len(weights))), "afterwards"]
    if len(order) > MOST_LINES:
        return _weights_map(weights, order, rounds)
    figure = _figure("", "weight, %")
    for number, color in zip(order, _LINES, strict=False):
        values = [100 * row[number] for row in weights]
        hover = f"cluster {number}, %{{x}}: %{{y:.2f}} %<extra></extra>"
        name = f"cluster {number}"
        figure.add_scatter(x=rounds, y=values, name=name, mode="lines+markers", line_color=color, hovertemplate=hover)
    return figure.update_yaxes(rangemode="tozero")


def _weights_map(weights: Sequence[Sequence[float]], order: Sequence[int], rounds: Sequence[str]) -> go.Figure:
    moves = [[_doublings(row[number], weights[0][number]) for number in order] for row in weights]
    reach = max((abs(move) for row in moves for move in row if move is not None), default=0.0) or 1.0
    figure = _figure("cluster, the largest first", "")
    figure.add_heatmap(
        x=[str(number) for number in order],
        y=list(rounds),
        z=moves,
        customdata=[[100 * row[number] for number in order] for row in weights],
        colorscale=_DIVERGING,
        zmin=-reach,
        zmax=reach,
        colorbar={"title": {"text": "doublings", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="cluster %{x}, %{y}: %{customdata:.3f} %, %{z:+.2f} doublings<extra></extra>",
    )
    return figure.update_xaxes(type="category").update_yaxes(autorange="reversed")


def _doublings(weight: float, first: float) -> float | None:
    return math.log2(weight / first) if weight > 0 and first > 0 else None


def gap_figure(selected: Sequence[Mean | None], held_out: Sequence[Mean | None]) -> go.Figure:
    """Mean reward gap by round with standard errors; entry 0 of both is the untuned model."""
    figure = _figure("round (0: before any training)", "reward gap")
    for label, color, means in (("selected rows", SELECTED, selected), ("held-out rows", HELD_OUT, held_out)):
        points = [(number, mean) for number, mean in enumerate(means) if mean is not None]
        if not points:
            continue
        figure.add_scatter(
            x=[number for number, _ in points],
            y=[mean.value for _, mean in points],
            error_y={"array": [mean.standard_error or 0.0 for _, mean in points], "thickness": 1, "width": 4},
            customdata=[mean.count for _, mean in points],
            name=label,
            mode="lines+markers",
            line_color=color,
            hovertemplate="round %{x}: %{y:.3f} over %{customdata:,} rows",
        )
    return figure.update_xaxes(dtick=1)


def loss_figure(losses: Sequence[Sequence[float]]) -> go.Figure:
    """Training loss by optimiser step, one line per round."""
    figure = _figure("optimiser step", "training loss, nats per token")
    for number, values in enumerate(losses, start=1):
        color = _LINES[(number - 1) % len(_LINES)]
        steps, name = list(range(1, len(values) + 1)), f"round {number}"
        hover = "step %{x}: %{y:.3f}"
        figure.add_scatter(x=steps, y=list(values), name=name, mode="lines", line_color=color, hovertemplate=hover)
    longest = max((len(values) for values in losses), default=0)
    return figure.update_xaxes(dtick=1 if longest <= _FEW_STEPS else None)


def quality_figure(pool: Sequence[float], selected: Sequence[float]) -> go.Figure:
    """Histograms over common bins, in percent of each group's rows."""
    low, high = min((*pool, *selected), default=0.0), max((*pool, *selected), default=0.0)
    # Floats that differ only in their last bits leave no room for bins between them.
    apart = high - low > 1e-9 * max(abs(low), abs(high))
    edges = np.linspace(low, high, _BINS + 1) if apart else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    figure = _figure("quality", "% of rows", barmode="overlay", bargap=0.02)
    for label, color, values in (("pool", POOL, pool), ("selected", SELECTED, selected)):
        shares = (100 * np.histogram(values, edges)[0] / max(1, len(values))).tolist()
        hover = "quality about %{x:.3g}: %{y:.1f} %"
        figure.add_bar(x=middles, y=shares, name=label, marker_color=color, opacity=0.65, hovertemplate=hover)
    return figure


def map_figure(points: Points, order: Sequence[int]) -> go.Figure:
    """Rows in the plane with the colour and shape of their cluster; selected rows are larger and ringed.

    Args:
        points: points of the map.
        order: cluster numbers, largest first; the first ones are listed in the legend and labelled on the map.
    """
    figure = _figure("", "", hovermode="closest", hoverdistance=8)
    figure.update_layout(height=600, margin={"l": 0, "r": 0, "b": 0}, legend={"itemsizing": "constant", "traceorder": "normal"})
    rank = np.full(max(order) + 1, len(order))
    rank[list(order)] = np.arange(len(order))
    of_row = rank[points.clusters]
    for place, number in enumerate(order[:_NAMED]):
        _add_rows(figure, points, of_row, of_row == place, f"cluster {number}", _looks(np.array([place])))
    if len(order) > _NAMED:
        _add_rows(figure, points, of_row, of_row >= _NAMED, "other clusters", {"color": POOL})
    _add_names(figure, points, order[:_NAMED])
    hidden = {"showticklabels": False, "showgrid": False, "title": None, "fixedrange": False}
    (left, right), (low, high) = (_range(points.places[:, axis]) for axis in (0, 1))
    return figure.update_xaxes(range=[left, right], **hidden).update_yaxes(range=[low, high], **hidden)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Range from minimum to maximum, with a margin."""
    margin = 0.03 * max(float(np.ptp(values)), 1e-6)
    return float(values.min()) - margin, float(values.max()) + margin


def _add_rows(
    figure: go.Figure, points: Points, rank: np.ndarray, shown: np.ndarray, name: str, entry: Mapping[str, object]
) -> None:
    """Add the shown rows, the selected ones above the others, and a legend entry that toggles them."""
    figure.add_scatter(x=[None], y=[None], mode="markers", name=name, legendgroup=name, hoverinfo="skip", marker=entry)
    for selected, size, line in ((False, 5.0, 0.0), (True, *_ring(points.marked))):
        rows = np.flatnonzero(shown & (points.selected == selected))
        figure.add_scatter(
            x=points.places[rows, 0],
            y=points.places[rows, 1],
            mode="markers",
            legendgroup=name,
            showlegend=False,
            zorder=int(selected),
            meta="selected" if selected else None,
            marker={**_looks(rank[rows]), "size": size, "opacity": 1 if selected else 0.7, "line": {"width": line}},
            text=[hover_text(points.texts[row]) for row in rows],
            customdata=points.clusters[rows],
            hovertemplate=f"<b>cluster %{{customdata}}{', selected' if selected else ''}</b><br>%{{text}}<extra></extra>",
        )


def _looks(rank: np.ndarray) -> dict[str, list[str]]:
    """Colours and shapes of clusters by size rank."""
    return {
        "color": [_MAP_COLORS[place % len(_MAP_COLORS)] for place in rank],
        "symbol": [_MAP_SYMBOLS[place // len(_MAP_COLORS) % len(_MAP_SYMBOLS)] for place in rank],
    }


def _ring(selected: int) -> tuple[float, float]:
    """Size of selected rows and width of their rings, smaller for more rows, so that they hide little."""
    return (11.0, 2.0) if selected <= 100 else (8.0, 1.5) if selected <= 400 else (6.0, 1.0)


def _add_names(figure: go.Figure, points: Points, clusters: Sequence[int]) -> None:
    """Label clusters with their numbers, each on the row nearest to the cluster's median that keeps clear of other numbers.

    If possible, it also keeps clear of selected rows.
    """
    unit = np.maximum(np.ptp(points.places, axis=0), 1e-9)
    scaled, named = points.places / unit, dict[int, int]()
    for cluster in clusters:
        rows = np.flatnonzero(points.clusters == cluster)
        rows = rows[_far(scaled[rows], scaled[list(named.values())], _APART)]
        clear = _far(scaled[rows], scaled[points.selected], _CLEAR)
        if len(rows):
            away = np.abs(scaled[rows] - np.median(scaled[rows], axis=0)).sum(axis=1)
            named[cluster] = int(rows[np.argmin(np.where(clear, away, away + 2))])
    figure.add_scatter(
        x=points.places[list(named.values()), 0],
        y=points.places[list(named.values()), 1],
        text=[str(cluster) for cluster in named],
        mode="text",
        meta="name",
        zorder=2,
        textfont={"size": 17, "weight": 700, "shadow": "auto"},
        hoverinfo="skip",
        showlegend=False,
    )


def _far(places: np.ndarray, others: np.ndarray, distance: float) -> np.ndarray:
    """(n,) whether none of the others lies in the square around each place."""
    return ~(np.abs(places[:, None] - others[None]) < distance).all(axis=2).any(axis=1)


def embed(figure: go.Figure, name: str, *, library: bool) -> Markup:
    """Convert a figure to HTML with a fixed element id, including plotly.js if `library` is set.

    Plotly escapes `<`, `>` and `/` in its JSON, so no value can close the script element.
    """
    html = plotly.io.to_html(
        figure,
        config={"displayModeBar": False, "responsive": True},
        include_plotlyjs=library,
        full_html=False,
        default_height=f"{figure.layout.height}px",
        div_id=f"figure-{name}",
    )
    return Markup(html)


def look(height: int, top: int) -> dict[str, Any]:
    """Layout shared by all figures; the pages replace text and grid colours according to their light or dark scheme."""
    return {
        "template": go.layout.Template(),
        "height": height,
        "margin": {"l": 8, "r": 8, "t": top, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#6b7280"},
        "hoverlabel": {"align": "left"},
    }


def _figure(x: str, y: str, **layout: object) -> go.Figure:
    """An empty figure in the page's style."""
    figure = go.Figure()
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(**look(height=320, top=36), legend=legend, showlegend=True, **layout)
    for update, text, grid in ((figure.update_xaxes, x, False), (figure.update_yaxes, y, True)):
        update(title={"text": text, "font": {"size": 12}}, showgrid=grid, **AXIS)
    return figure
