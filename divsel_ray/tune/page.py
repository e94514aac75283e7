"""Writes `tune.json`, `tune.html` and `best.yaml`: all trials with their correlations, and the best configuration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from divsel_ray.config.files import dump_config
from divsel_ray.report import charts, html
from divsel_ray.store import write_json, write_text
from divsel_ray.tune.chart import MOST_LINES, parallel_figure, shown, text_of
from divsel_ray.tune.correlation import FEW
from divsel_ray.tune.objectives import figure_of, figures_wanted
from divsel_ray.tune.outcome import Outcome

RECORD, PAGE, BEST = "tune.json", "tune.html", "best.yaml"
_TEMPLATE = "tune.html.j2"
MOST_ROWS = 500
"""Maximum number of trials in the table of the page."""


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write the three files to a folder; `best.yaml` only if a trial finished."""
    write_json(folder / RECORD, record_of(outcome))
    texts = {PAGE: render_page(outcome)}
    if outcome.best is not None:
        texts[BEST] = best_config(outcome)
    for name, text in texts.items():
        write_text(folder / name, text)


def record_of(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON."""
    return {
        "objective": outcome.tuning.objective,
        "mode": outcome.mode,
        "best": outcome.best.key if outcome.best else None,
        "concurrency": outcome.concurrency,
        "trials": [asdict(trial) for trial in outcome.trials],
        "correlations": [asdict(one) for one in outcome.correlations],
        "cautions": list(outcome.cautions),
        "search": outcome.tuning.model_dump(mode="json"),
    }


def best_config(outcome: Outcome) -> str:
    """The best trial's configuration as YAML for `divsel run`."""
    best, objective = outcome.best, outcome.tuning.objective
    assert best is not None
    # The name of a benchmark comes from the user: keep the comment on one line.
    reached = f"{' '.join(objective.split())} = {best.figures[objective]:.6g}"
    settings = dump_config(outcome.tuning.config_of(best.settings))
    return f"# best of {len(outcome.finished)} finished trials of divsel tune: {reached}\n{settings}"


def render_page(outcome: Outcome) -> str:
    """The page as HTML."""
    figure = charts.embed(parallel_figure(outcome), "trials", library=True) if shown(outcome) else Markup("")
    return html.render(
        _TEMPLATE,
        [figure],
        outcome=outcome,
        tuning=outcome.tuning,
        names=figures_wanted(outcome.tuning),
        meanings={name: figure_of(name).meaning for name in figures_wanted(outcome.tuning)},
        figure=figure,
        most_lines=MOST_LINES,
        trials=outcome.trials[:MOST_ROWS],
        few=FEW,
        brief=text_of,
        best=best_config(outcome) if outcome.best else "",
    )
