"""The outcome of a search: its trials, best first, and the correlations of their figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divsel_ray.config.tuning import Point, TuningConfig
from divsel_ray.errors import last_line
from divsel_ray.failures import reason_of
from divsel_ray.tune.correlation import Correlation, correlate
from divsel_ray.tune.objectives import Mode, cautions, mode_of, rows_by
from divsel_ray.tune.record import ROUND, read_record

_ORDER = {"finished": 0, "stopped": 1, "failed": 2}


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        key: name of its run folder in `trials/`.
        settings: values by their dotted path in the job's configuration.
        state: finished, stopped (by the scheduler, after a round) or failed.
        objective: value after the finished run, or after the last round of a stopped one; None if unknown.
        figures: objective and measures of a finished trial.
        rounds: figures of each round.
        seconds: seconds of work, without what other trials had already computed.
        error: why it failed.
    """

    key: str
    settings: Point
    state: str
    objective: float | None
    figures: Mapping[str, float]
    rounds: Sequence[Mapping[str, float]]
    seconds: float | None
    error: str | None = None

    @property
    def last_round(self) -> int | None:
        """The last completed round; None if there is none."""
        return int(self.rounds[-1][ROUND]) if self.rounds else None


@dataclass(frozen=True)
class Outcome:
    """A search and its trials.

    Attributes:
        tuning: the search.
        mode: whether the best trial has the highest or the lowest objective.
        trials: finished trials from best to worst, then stopped ones, those with most rounds first, then failed ones.
        correlations: each additional measure against the objective, over finished trials, within groups of the same rows.
        cautions: caveats for comparing the trials, one line each.
        concurrency: number of trials that ran at once.
    """

    tuning: TuningConfig
    mode: Mode
    trials: Sequence[Trial]
    correlations: Sequence[Correlation]
    cautions: Sequence[str]
    concurrency: int

    @property
    def finished(self) -> list[Trial]:
        """Trials that ran to completion, best first."""
        return [trial for trial in self.trials if trial.state == "finished"]

    @property
    def best(self) -> Trial | None:
        """The best finished trial."""
        return next(iter(self.finished), None)


def read_trial(folder: Path, search: str, point: Point, tuning: TuningConfig, error: BaseException | None) -> Trial:
    """Read a trial from its folder; one that neither finished nor failed was stopped.

    Args:
        folder: run folder of the trial.
        search: name of the search, which tells searches in the same folder apart.
        point: settings of the trial.
        tuning: the search.
        error: error that ended it, ignored if another trial with the same settings finished.
    """
    record = read_record(folder, search)
    state = record.get("state", "failed")
    error = None if state == "finished" else error
    rounds, figures = record.get("rounds", []), record.get("figures", {})
    objective = figures.get(tuning.objective, rounds[-1].get(tuning.objective) if rounds else None)
    said = record.get("error") or (reason_of(error) or last_line(error) if error else None)
    state = "failed" if error is not None else "stopped" if state == "running" else state
    return Trial(folder.name, point, state, objective, figures, rounds, record.get("seconds"), said)


def compare(tuning: TuningConfig, trials: Sequence[Trial], concurrency: int) -> Outcome:
    """Order the trials and compute the correlations."""
    mode = mode_of(tuning)
    ordered = sorted(trials, key=lambda trial: _place(trial, mode))
    finished = [trial for trial in ordered if trial.state == "finished"]
    of_rows = set(rows_by(tuning))
    groups = [_key(one, of_rows) for one in finished]
    points = [_key(one, set(tuning.search) - of_rows) for one in finished]
    correlations = [
        correlate(
            measure, tuning.objective, [(one.figures[measure], one.figures[tuning.objective]) for one in finished], points, groups
        )
        for measure in dict.fromkeys(tuning.measures)
        if measure != tuning.objective
    ]
    return Outcome(tuning, mode, ordered, correlations, cautions(tuning), concurrency)


def _key(trial: Trial, places: Set[str]) -> str:
    return json.dumps({place: trial.settings[place] for place in places}, sort_keys=True, default=str)


def _place(trial: Trial, mode: Mode) -> tuple[Any, ...]:
    if trial.objective is None:
        return _ORDER[trial.state], 0, True, 0.0, trial.key
    signed = trial.objective if mode == "min" else -trial.objective
    farthest = -(trial.last_round or 0) if trial.state == "stopped" else 0
    return _ORDER[trial.state], farthest, False, signed, trial.key
