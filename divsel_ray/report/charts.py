"""Plotly figures from plain numbers.

Every string in them is written here: no text of a row, a file name or a model ever enters a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from markupsafe import Markup

from divsel_ray.report.facts import Cluster
from divsel_ray.report.records import Mean

POOL, SELECTED, HELD_OUT = "#8a94a3", "#2f6fb0", "#d9772b"
_LINES = ("#2f6fb0", "#d9772b", "#3a9a6f", "#b0508f", "#8a6d3b", "#5f9ed1", "#c7484f", "#6b7280")
_DIVERGING = [[0.0, "#c7602a"], [0.5, "#dfe3e8"], [1.0, "#2f6fb0"]]
_BINS = 40
_FEW_STEPS = 15
AXIS = {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False, "automargin": True, "fixedrange": True}
MOST_LINES = len(_LINES)
"""Clusters up to which weights are drawn as lines."""


def cluster_figure(clusters: Sequence[Cluster]) -> go.Figure:
    """Each cluster's share of the pool beside its share of the selection, in percent, in the order given."""
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
    """Cluster weights over rounds; the last entry is what the last round left behind.

    Lines of the weights for few clusters, else a heat map of log2(weight / first weight).

    Args:
        weights: (rounds + 1) x (k,).
        order: cluster numbers, in the order to show them.
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
    edges = np.histogram_bin_edges(np.array([*pool, *selected]), _BINS)
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    figure = _figure("quality", "% of rows", barmode="overlay", bargap=0.02)
    for label, color, values in (("pool", POOL, pool), ("selected", SELECTED, selected)):
        shares = (100 * np.histogram(values, edges)[0] / max(1, len(values))).tolist()
        hover = "quality about %{x:.3g}: %{y:.1f} %"
        figure.add_bar(x=middles, y=shares, name=label, marker_color=color, opacity=0.65, hovertemplate=hover)
    return figure


def embed(figure: go.Figure, name: str, *, library: bool) -> Markup:
    """A figure as HTML under a fixed element id, with plotly.js itself where `library` is set.

    Plotly writes `<`, `>` and `/` inside its JSON as escapes, so no value can end the script element.
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
    """The layout that all figures share; the pages set colours of text and grid to their own light or dark ones."""
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
