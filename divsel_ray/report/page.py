"""`report.html`: one file that opens offline and says what a run did to someone who did not run it.

Texts of rows are hostile until shown otherwise. The template escapes all of them, figures hold none of them, and a
content security policy lets run only the scripts whose hashes it lists: plotly.js, our figures and our colour switch.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from divsel_ray import __version__, store
from divsel_ray.report import charts
from divsel_ray.report.card import CARD, dataset_card
from divsel_ray.report.examples import read_held_out, read_selected
from divsel_ray.report.facts import Run, read_run

PAGE = "report.html"
SELECTED_SHOWN = 6
HELD_OUT_SHOWN = 4
CLUSTERS_SHOWN = 100
_TEMPLATE = "page.html.j2"
_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and the dataset card `README.md` of a finished run; returns the page's path.

    The same folder gives the same bytes.

    Raises:
        InputError: the folder holds no finished run, or files of it are gone.
    """
    folder = Path(folder)
    run = read_run(folder)
    page = render_page(run, folder)
    for name, text in ((PAGE, page), (CARD, dataset_card(run))):
        with store.atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return folder / PAGE


def render_page(run: Run, folder: Path) -> str:
    """The page as HTML."""
    order = [cluster.number for cluster in run.clustering.clusters]
    figures = _embedded(_figures(run, order))
    environment = _environment()
    scripts = Markup(environment.get_template("colours.js").render())
    return environment.get_template(_TEMPLATE).render(
        run=run,
        config=run.config,
        refined=run.config.refine is not None,
        figures=figures,
        colours=scripts,
        policy=_policy([*figures.values(), f"<script>{scripts}</script>"]),
        weights=_weights(run),
        weights_as_map=len(order) > charts.MOST_LINES,
        clusters=run.clustering.clusters[:CLUSTERS_SHOWN],
        selected=read_selected(folder, order, SELECTED_SHOWN),
        held_out=read_held_out(folder, HELD_OUT_SHOWN),
        settings=yaml.safe_dump(run.config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True),
        seconds=sum(timing.seconds for timing in run.timings),
        version=__version__,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("divsel_ray", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "integer": _integer,
        "figure": _figure,
        "measure": _measure,
        "percent": _percent,
        "duration": _duration,
    }
    return environment


def _figures(run: Run, order: list[int]) -> dict[str, go.Figure]:
    """The run's figures by name; those without data are left out."""
    figures = {}
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
    """(rounds + 1) x (k,): the weights of every round, then those the last one left behind."""
    afterwards = [list(one.update.after) for one in run.rounds[-1:] if one.update]
    return [list(one.weights) for one in run.rounds] + afterwards


def _embedded(figures: Mapping[str, go.Figure]) -> dict[str, Markup]:
    """Figures as HTML; the first, which the page shows first, carries plotly.js."""
    return {name: charts.embed(figure, name, library=at == 0) for at, (name, figure) in enumerate(figures.items())}


def _policy(parts: list[str]) -> str:
    """A content security policy under which nothing is loaded and only these parts' inline scripts run."""
    scripts = [script for part in parts for script in _SCRIPT.findall(part)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


_NONE = "–"


def _integer(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"


def _figure(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def _measure(value: float | None) -> str:
    """Three significant digits: rewards come on any scale."""
    if value is None or not math.isfinite(value):
        return _NONE
    return _figure(value, 0) if abs(value) >= 100 else f"{value:#.3g}".replace("-", "−")


def _percent(value: float | None, digits: int = 0) -> str:
    return _NONE if value is None else f"{100 * value:.{digits}f} %"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
