"""`choose-k.json` and `choose-k.html`: the measures of each k in four panels, with the recommended k marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from divsel_ray.cluster.criteria import MODERATE, Candidate, Choice
from divsel_ray.errors import InputError
from divsel_ray.report import charts, html
from divsel_ray.store import read_json, write_json, write_text

RECORD, PAGE = "choose-k.json", "choose-k.html"
_TEMPLATE = "choice.html.j2"
_BLUE, _ORANGE, _GREY = charts.SELECTED, charts.HELD_OUT, charts.POOL
_LEGENDS = {(1, 1): "legend", (1, 2): "legend2", (2, 1): "legend3", (2, 2): "legend4"}
_TITLES = ("Inertia", "Silhouettes", "Stability", "Cluster sizes")


def write_choice(choice: Choice, folder: str | Path) -> None:
    """Write `choose-k.json` and `choose-k.html` into a folder."""
    write_json(Path(folder) / RECORD, asdict(choice))
    write_text(Path(folder) / PAGE, render_page(choice))


def read_choice(folder: str | Path) -> Choice:
    """Read the result that `write_choice` wrote to a folder.

    Raises:
        InputError: there is no such file.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the output of divsel choose-k")
    return Choice.of_record(read_json(path))


def render_page(choice: Choice) -> str:
    """Render the page as HTML."""
    figure = charts.embed(choice_figure(choice), "choice", library=True)
    stable = [one for one in choice.candidates if one.stability is not None]
    return html.render(
        _TEMPLATE,
        [figure],
        choice=choice,
        figure=figure,
        most_stable=max(stable, key=lambda one: one.stability or 0.0, default=None),
        highest=max(choice.candidates, key=lambda one: one.simplified_silhouette),
        seconds=sum(one.seconds for one in choice.candidates),
        moderate=MODERATE,
    )


def choice_figure(choice: Choice) -> go.Figure:
    """Four panels over k: inertia with its elbow, both silhouettes, stability with its spread, cluster sizes."""
    figure = make_subplots(2, 2, subplot_titles=_TITLES, horizontal_spacing=0.13, vertical_spacing=0.17)
    some = choice.candidates
    _add_inertia(figure, some, choice.elbow)
    _add_line(figure, (1, 2), some, [one.simplified_silhouette for one in some], "simplified, all rows", _BLUE)
    sample = f"standard, {some[0].silhouette_rows:,} rows"
    _add_line(figure, (1, 2), some, [one.silhouette for one in some], sample, _ORANGE)
    _add_stability(figure, some)
    for name, color in (("largest", _GREY), ("median", _BLUE), ("smallest", _ORANGE)):
        sizes = [getattr(one, name) or None for one in some]
        _add_line(figure, (2, 2), some, sizes, name, color, "%{y:,} rows")
    _add_line(figure, (2, 2), some, [one.singletons or None for one in some], "singletons", "#c7484f", "%{y:,} clusters")
    _mark(figure, choice)
    return _styled(figure, some)


def _add_inertia(figure: go.Figure, some: Sequence[Candidate], elbow: int | None) -> None:
    _add_line(figure, (1, 1), some, [one.inertia or None for one in some], "inertia", _BLUE, "%{y:,.4g}")
    at = [one for one in some if one.k == elbow]
    if at:
        marker = {"size": 15, "color": "rgba(0,0,0,0)", "line": {"width": 2, "color": _ORANGE}}
        hover = f"elbow at k = {elbow:,}<extra></extra>"
        points = {"x": [_place(one.k) for one in at], "y": [one.inertia for one in at]}
        figure.add_scatter(**points, mode="markers", name="elbow", marker=marker, hovertemplate=hover, row=1, col=1)


def _add_stability(figure: go.Figure, some: Sequence[Candidate]) -> None:
    spread = {"array": [one.stability_deviation or 0.0 for one in some], "thickness": 1, "width": 4}
    _add_line(figure, (2, 1), some, [one.stability for one in some], "adjusted Rand index", _BLUE, error_y=spread)
    figure.add_hline(y=MODERATE, line={"dash": "dot", "width": 1, "color": _GREY}, row=2, col=1)


def _add_line(
    figure: go.Figure,
    panel: tuple[int, int],
    some: Sequence[Candidate],
    values: Sequence[float | None],
    name: str,
    color: str,
    shown: str = "%{y:.3f}",
    **style: object,
) -> None:
    figure.add_scatter(
        x=[_place(one.k) for one in some],
        y=list(values),
        customdata=[one.k for one in some],
        name=name,
        mode="lines+markers",
        line_color=color,
        hovertemplate=f"k = %{{customdata:,}}: {shown}<extra>{name}</extra>",
        legend=_LEGENDS[panel],
        row=panel[0],
        col=panel[1],
        **style,
    )


def _mark(figure: go.Figure, choice: Choice) -> None:
    """Mark the recommended k with a line: solid if the data prefers it, dashed if it is the default."""
    dash = "solid" if choice.recommendation.preferred else "dash"
    line = {"color": "#3a9a6f", "width": 2, "dash": dash}
    figure.add_vline(x=_place(choice.recommendation.k), line=line, opacity=0.8, row="all", col="all")


def _place(k: int) -> float:
    """Position of k on an axis of doublings."""
    return math.log2(k)


def _styled(figure: go.Figure, some: Sequence[Candidate]) -> go.Figure:
    figure.update_layout(**charts.look(height=760, top=64))
    for at, (panel, legend) in enumerate(_LEGENDS.items()):
        left, top = figure.get_subplot(*panel).xaxis.domain[0], figure.get_subplot(*panel).yaxis.domain[1]
        figure.layout.annotations[at].update(x=left, xanchor="left", y=top, yshift=26, font={"size": 14})
        figure.update_layout({legend: {"orientation": "h", "x": left, "y": top, "yanchor": "bottom", "font": {"size": 12}}})
    places = {"tickvals": [_place(one.k) for one in some], "ticktext": [str(one.k) for one in some], "tickangle": 0}
    figure.update_xaxes(showgrid=False, **places, **charts.AXIS)
    figure.update_yaxes(showgrid=True, **charts.AXIS)
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_yaxes(type="log", dtick=1, row=2, col=2)
    for panel in ((1, 2), (2, 1)):
        figure.update_yaxes(rangemode="tozero", row=panel[0], col=panel[1])
    return figure
