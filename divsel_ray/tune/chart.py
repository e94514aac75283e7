"""Parallel coordinates plot of the trials: one axis per setting and figure, one line per trial.

Drawn as scatter lines, because plotly's `parcoords` compiles code in the browser, which the content security policy forbids.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from divsel_ray.config.tuning import Dimension
from divsel_ray.report import charts
from divsel_ray.tune.outcome import Outcome, Trial

MOST_LINES = 200
MOST_LABELS = 12
"""Maximum number of labels on an axis of choices; of more choices, evenly spaced ones are labelled."""
_SCALE = [[0.0, charts.HELD_OUT], [0.5, "#9aa3ad"], [1.0, charts.SELECTED]]
_STOPPED = "rgba(138,148,163,0.55)"
_LABEL = 22


@dataclass(frozen=True)
class Axis:
    """One axis of the plot.

    Attributes:
        name: name of the setting or figure.
        places: position of each trial, in 0..1; None if unknown.
        texts: text of each trial's value.
        ticks: positions and labels.
    """

    name: str
    places: Sequence[float | None]
    texts: Sequence[str]
    ticks: Sequence[tuple[float, str]]


def shown(outcome: Outcome) -> list[Trial]:
    """The trials to plot: the first `MOST_LINES` whose objective is known."""
    return [trial for trial in outcome.trials if trial.objective is not None][:MOST_LINES]


def parallel_figure(outcome: Outcome) -> go.Figure:
    """Plot settings from left to right, then the measures and the objective; lines range from orange (worst) to blue (best)."""
    trials = shown(outcome)
    axes = axes_of(outcome, trials)
    figure = go.Figure()
    figure.update_layout(**charts.look(height=460, top=64), showlegend=False, hovermode="closest")
    objective = axes[-1].places
    # The best are drawn last, on top of the others.
    for number in reversed(range(len(trials))):
        figure.add_scatter(**_line(axes, number, trials[number], objective[number] or 0.0, outcome.mode))
    for place, axis in enumerate(axes):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"width": 1, "color": charts.POOL}, layer="below")
        for at, label in axis.ticks:
            text = {"text": safe(label), "showarrow": False, "xanchor": "left", "xshift": 5, "font": {"size": 11}}
            figure.add_annotation(x=place, y=at, **text)
    names = [_wrapped(axis.name) for axis in axes]
    ticks = {"tickvals": list(range(len(axes))), "ticktext": names, "tickangle": 0, "side": "top"}
    figure.update_xaxes(range=[-0.15, len(axes) - 0.4], showgrid=False, **ticks, **charts.AXIS)
    figure.update_yaxes(range=[-0.06, 1.06], visible=False, fixedrange=True)
    return figure


def _wrapped(name: str) -> str:
    """A dotted name with one line per part; long parts are wrapped."""
    lines = [line for part in name.replace(".", ".\n").split("\n") for line in wrap(part.replace("_", "_ "), _LABEL // 2)]
    return "<br>".join(safe(line.replace("_ ", "_")) for line in lines)


def _line(axes: Sequence[Axis], number: int, trial: Trial, place: float, mode: str) -> dict[str, Any]:
    goodness = place if mode == "max" else 1 - place
    finished = trial.state == "finished"
    color = sample_colorscale(_SCALE, [goodness])[0] if finished else _STOPPED
    hover = "<br>".join(safe(f"{axis.name}: {axis.texts[number]}") for axis in axes)
    return {
        "x": list(range(len(axes))),
        "y": [axis.places[number] for axis in axes],
        "mode": "lines+markers",
        "line": {"color": color, "width": 2 if finished else 1, "dash": "solid" if finished else "dot"},
        "marker": {"size": 5},
        "hovertemplate": f"{safe(f'trial {trial.key}, {trial.state}')}<br>{hover}<extra></extra>",
    }


def axes_of(outcome: Outcome, trials: Sequence[Trial]) -> list[Axis]:
    """One axis for each setting, for each additional measure, and for the objective."""
    tuning = outcome.tuning
    axes = [setting_axis(name, dimension, [one.settings[name] for one in trials]) for name, dimension in tuning.search.items()]
    measures = [name for name in dict.fromkeys(tuning.measures) if name != tuning.objective]
    axes += [number_axis(name, [one.figures.get(name) for one in trials], log=False) for name in measures]
    return [*axes, number_axis(tuning.objective, [one.objective for one in trials], log=False)]


def setting_axis(name: str, dimension: Dimension, values: Sequence[Any]) -> Axis:
    """The axis of a range, or of the values of a choice, evenly spaced in their order."""
    if dimension.choice is None:
        return number_axis(name, values, log=dimension.kind.startswith("log"))
    known = dimension.choice
    spread = max(1, len(known) - 1)
    places = [known.index(value) / spread for value in values]
    step = math.ceil(len(known) / MOST_LABELS)
    ticks = [(at / spread, text_of(known[at])) for at in range(0, len(known), step)]
    return Axis(name, places, [text_of(value) for value in values], ticks)


def number_axis(name: str, values: Sequence[float | None], *, log: bool) -> Axis:
    """An axis from the smallest to the largest value."""
    scaled = [None if value is None else math.log(value) if log else float(value) for value in values]
    known = [value for value in scaled if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    width = high - low
    places = [None if value is None else (value - low) / width if width else 0.5 for value in scaled]
    texts = [text_of(value) for value in values]
    ticks = {at: text for at, text in zip(places, texts, strict=True) if at in (0.0, 0.5 if not width else 1.0)}
    return Axis(name, places, texts, sorted((at, text) for at, text in ticks.items() if at is not None))


def text_of(value: Any) -> str:
    """A value as a short text."""
    if value is None:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def safe(text: str) -> str:
    """Escape HTML and plotly's template syntax, so that plotly shows the text unchanged."""
    return html.escape(text, quote=False).replace("%{", "%&#123;")
