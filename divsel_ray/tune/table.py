"""Tables of trials and correlations for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from divsel_ray.tune.chart import text_of
from divsel_ray.tune.correlation import FEW, Correlation
from divsel_ray.tune.objectives import figures_wanted
from divsel_ray.tune.outcome import Outcome, Trial


def trials_table(outcome: Outcome) -> Table:
    """One line for each trial, best first."""
    table = Table("trial", box=None, pad_edge=False, header_style="dim")
    names = figures_wanted(outcome.tuning)
    for name in (*outcome.tuning.search, *names):
        table.add_column(escape(name), justify="right")
    table.add_column("", no_wrap=True)
    for trial in outcome.trials:
        settings = [escape(text_of(trial.settings[name])) for name in outcome.tuning.search]
        figures = [escape(text_of(value)) for value in _figures(trial, names)]
        style = "bold" if trial is outcome.best else "dim" if trial.state != "finished" else None
        table.add_row(escape(trial.key), *settings, *figures, _state(trial), style=style)
    return table


def _figures(trial: Trial, names: list[str]) -> list[float | None]:
    return [trial.figures.get(name, trial.objective if name == names[0] else None) for name in names]


def _state(trial: Trial) -> str:
    if trial.state == "stopped":
        return f"stopped after round {trial.last_round}" if trial.rounds else "stopped"
    return "" if trial.state == "finished" else trial.state


def outcome_lines(outcome: Outcome) -> Iterator[str]:
    """Correlations, caveats, and reasons why trials failed."""
    for one in outcome.correlations:
        yield correlation_line(one)
    yield from outcome.cautions
    for trial in outcome.trials:
        if trial.error:
            yield f"trial {trial.key} failed: {trial.error}"


def correlation_line(one: Correlation) -> str:
    """A correlation with its interval as a sentence."""
    pair = f"{one.measure} and {one.objective}"
    of = f"{one.trials} trials" + (f" of {one.points} points in {one.groups} groups of the same rows" if one.groups > 1 else "")
    if one.r is None:
        return f"{pair}: no correlation; too few points ({of}), or one of the two is constant"
    said = f"{pair}: Pearson r = {one.r:.2f} over {of}"
    if one.low is None or one.high is None:
        return f"{said}; too few for an interval"
    few = "; unreliable with few points" if one.points < FEW else ""
    return f"{said}, 95 % interval {one.low:.2f} to {one.high:.2f} (Fisher z{few})"
