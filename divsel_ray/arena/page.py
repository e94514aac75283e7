"""`arena.html`: a single file that opens offline and shows which contender won, by how much and with what certainty.

Labels of evaluation rows are untrusted texts: the template escapes them, and no figure contains any.
"""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import yaml

from divsel_ray.arena.bootstrap import LEVEL
from divsel_ray.arena.contenders import BASE, LONG, RANDOM, SHUFFLED
from divsel_ray.arena.result import Result, Standing
from divsel_ray.report import charts, html
from divsel_ray.store import write_text

PAGE = "arena.html"
TASKS_SHOWN, FEWEST_ROWS = 30, 3
_TEMPLATE = "arena.html.j2"
_COLORS = {"better than random": "#3a9a6f", "worse than random": "#c7484f"}


def write_page(result: Result, folder: Path) -> Path:
    """Write `arena.html` and return its path; the same result gives the same bytes."""
    write_text(folder / PAGE, render_page(result))
    return folder / PAGE


def render_page(result: Result) -> str:
    """Render the page as HTML."""
    figure = charts.embed(difference_figure(result), "arena", library=True)
    return html.render(
        _TEMPLATE,
        [figure],
        result=result,
        best=result.best,
        trained=[one for one in result.standings if one.contender.kind != "base"],
        iterative=[one for one in result.standings if one.contender.kind == "iterative"],
        controls=[name for name in (LONG, result.job["select"]["sampler"], SHUFFLED) if name in result.of],
        figure=figure,
        tasks=[one for one in result.tasks if one.rows >= FEWEST_ROWS][:TASKS_SHOWN],
        names={"base": BASE, "random": RANDOM, "long": LONG},
        level=LEVEL,
        colors=_COLORS,
        settings=yaml.safe_dump(
            {**result.settings, "job": result.job}, sort_keys=False, allow_unicode=True, default_flow_style=False
        ),
    )


def difference_figure(result: Result) -> go.Figure:
    """Difference of each contender's loss from random's with its interval, the best at the top; a line at zero."""
    shown = [one for one in result.standings if RANDOM in one.differences and one.contender.name != BASE][::-1]
    figure = go.Figure()
    for one in shown:
        _add(figure, one)
    figure.update_layout(**charts.look(height=70 + 34 * max(2, len(shown)), top=8), showlegend=False)
    figure.add_vline(x=0, line={"dash": "dot", "width": 1, "color": charts.POOL})
    title = {"text": "difference in loss from random, nats per token (left is better)", "font": {"size": 12}}
    figure.update_xaxes(title=title, showgrid=True, **charts.AXIS)
    return figure.update_yaxes(showgrid=False, type="category", **charts.AXIS)


def _add(figure: go.Figure, one: Standing) -> None:
    found, color = one.differences[RANDOM], _COLORS.get(one.verdict, charts.POOL)
    figure.add_scatter(
        x=[found.mean],
        y=[one.title],
        error_x={"array": [found.high - found.mean], "arrayminus": [found.mean - found.low], "thickness": 2, "width": 5},
        mode="markers",
        marker={"size": 9, "color": color},
        hovertemplate=f"{one.title}: %{{x:.4f}} [{found.low:.4f}, {found.high:.4f}]<extra></extra>",
    )
