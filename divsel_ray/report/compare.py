"""Comparison of finished runs: the overlap of their selections and the spread of their results."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divsel_ray.errors import InputError
from divsel_ray.report.facts import Run, read_run, read_selection
from divsel_ray.report.signs import Sign

UNSTABLE = 0.5
"""Standard deviation of the held-out gain, as a share of its mean, above which runs count as unstable."""
GAP_ERRORS = 2.0
"""The same for the held-out gap, in standard errors of a single run's gap."""


@dataclass(frozen=True)
class ComparedRun:
    """One run: its rows, and the results of its last round on held-out rows (None without held-out rows).

    `gain` is how far training lowered the held-out loss, in nats per token.
    """

    folder: str
    rows: int
    held_out_loss: float | None
    gain: float | None
    held_out_gap: float | None


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over runs."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs.

    Attributes:
        compared: the runs, in the order given.
        overlap: mean Jaccard index of the selected rows over all pairs of runs; 1 for the same rows.
        overlap_by_chance: expected overlap of random selections of these sizes from the largest of the pools.
        held_out_loss: spread over the runs that have one; None for fewer than two.
        gain: likewise.
        held_out_gap: likewise.
        signs: signs that the runs vary too much to be trusted.
    """

    compared: Sequence[ComparedRun]
    overlap: float
    overlap_by_chance: float
    held_out_loss: Spread | None
    gain: Spread | None
    held_out_gap: Spread | None
    signs: Sequence[Sign]


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Compare two or more finished runs, which should differ only in the seed or in the settings of interest.

    Raises:
        InputError: only one folder is given, a folder contains no finished run, or files of a run are missing.
    """
    if len(folders) < 2:
        raise InputError("only one run; name at least one other to compare it with")
    runs = [read_run(folder) for folder in folders]
    rows = [set(read_selection(folder, ["row_id"])["row_id"].to_pylist()) for folder in folders]
    compared = [_compared(str(folder), run) for folder, run in zip(folders, runs, strict=True)]
    gain, gap = _spread([one.gain for one in compared]), _spread([one.held_out_gap for one in compared])
    pool = max(run.pool.rows for run in runs)
    return Comparison(
        compared=compared,
        overlap=statistics.fmean(jaccard(one, other) for one, other in itertools.combinations(rows, 2)),
        overlap_by_chance=statistics.fmean(_by_chance(len(a), len(b), pool) for a, b in itertools.combinations(rows, 2)),
        held_out_loss=_spread([one.held_out_loss for one in compared]),
        gain=gain,
        held_out_gap=gap,
        signs=unstable(gain, gap, [error for run in runs if (error := _gap_error(run)) is not None]),
    )


def jaccard(one: set[str], other: set[str]) -> float:
    """Shared elements as a share of all (Jaccard 1901); 1 for two empty sets."""
    return len(one & other) / len(one | other) if one | other else 1.0


def unstable(gain: Spread | None, gap: Spread | None, gap_errors: Sequence[float]) -> list[Sign]:
    """Return a sign if the runs vary too much, else nothing.

    Args:
        gain: gain of training on held-out rows, over runs.
        gap: held-out gap, over runs.
        gap_errors: standard error of each run's held-out gap.
    """
    evidence = []
    if gain and gain.deviation > UNSTABLE * abs(gain.mean):
        evidence.append(f"the gain of training on held-out rows is {gain.mean:.3f} ± {gain.deviation:.3f} nats per token")
    if gap and gap_errors and gap.deviation > GAP_ERRORS * statistics.fmean(gap_errors):
        error = statistics.fmean(gap_errors)
        evidence.append(f"the held-out gap varies by {gap.deviation:.3g}, but its standard error within a run is {error:.3g}")
    if not evidence:
        return []
    cause = "the reward is unstable, or a run trains too little for its results to be reliable"
    setting = "raise budget, refine.train.epochs and refine.held_out, or use another reward model; compare means over seeds"
    return [Sign("results vary from run to run", "; ".join(evidence), cause, setting)]


def _compared(folder: str, run: Run) -> ComparedRun:
    last = run.rounds[-1]
    base, loss = (last.training.held_out_loss_base, last.training.held_out_loss) if last.training else (None, None)
    gain = base - loss if base is not None and loss is not None else None
    return ComparedRun(folder, run.rows, loss, gain, last.held_out_gap.value if last.held_out_gap else None)


def _gap_error(run: Run) -> float | None:
    gap = run.rounds[-1].held_out_gap
    return gap.standard_error if gap else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    numbers = [value for value in values if value is not None]
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers)) if len(numbers) > 1 else None


def _by_chance(one: int, other: int, pool: int) -> float:
    shared = one * other / pool if pool else 0.0
    return shared / (one + other - shared) if one + other else 1.0
