"""Cost of a run by stage, and cost and gain of refinement compared with a static selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from divsel_ray.report.facts import Run, Timing
from divsel_ray.stage_names import is_control, kind_of, round_of
from divsel_ray.usage import Usage


@dataclass(frozen=True)
class Refinement:
    """Refinement compared with a static selection of the same budget; losses are in nats per token on the same held-out rows.

    Attributes:
        static: usage of all stages that a static selection needs.
        rounds: usage of the stages added by refinement.
        control: usage of one training on a static selection; None without such a training.
        static_loss: held-out loss of that training.
        refined_loss: held-out loss of the last round.
        gain: static_loss minus refined_loss; None if either is unknown.
        extra_hours: GPU-hours, or CPU-hours if no GPU was reserved, in excess of the training on the static selection.
        unit: GPU-hour or CPU-hour.
        gain_per_hour: gain divided by extra_hours.
    """

    static: Usage
    rounds: Usage
    control: Usage | None
    static_loss: float | None
    refined_loss: float | None
    gain: float | None
    extra_hours: float | None
    unit: str
    gain_per_hour: float | None


@dataclass(frozen=True)
class Bill:
    """Cost of all stages together.

    Attributes:
        total: resources used by the recorded stages.
        money: cost in the currency of `prices`, including payments to servers; None without prices and payments.
        unrecorded: stages from a version that did not record usage.
        interrupted: stages that were started more than once.
        refinement: cost and gain of refinement; None for a static selection.
    """

    total: Usage
    money: float | None
    unrecorded: Sequence[str]
    interrupted: Sequence[str]
    refinement: Refinement | None


def bill(run: Run) -> Bill:
    """Compute the cost of a run."""
    total = _sum(run.timings)
    return Bill(
        total=total,
        money=total.money(run.config.prices) if total.paid or _priced(run) else None,
        unrecorded=[one.stage for one in run.timings if one.usage is None],
        interrupted=[one.stage for one in run.timings if one.usage and one.usage.attempts > 1],
        refinement=_refinement(run) if run.config.refine else None,
    )


def _priced(run: Run) -> bool:
    """Whether any price is set."""
    prices = run.config.prices
    return bool(prices.cpu_hour or prices.gpu_hour or prices.gib_hour)


def _refinement(run: Run) -> Refinement:
    added = [one for one in run.timings if _is_of_rounds(one.stage, run)]
    compared = [one for one in run.timings if is_control(one.stage)]
    others = [one for one in run.timings if one not in added and one not in compared]
    rounds, control = _sum(added), _sum([one for one in compared if kind_of(one.stage) == "train"]) if run.control else None
    trained = [one.training for one in run.rounds if one.training]
    refined = trained[-1].held_out_loss if trained else None
    static = run.control.held_out_loss if run.control else None
    gain = static - refined if static is not None and refined is not None else None
    held = "gpu_s" if rounds.gpu_s > 0 else "cpu_s"
    extra = (getattr(rounds, held) - getattr(control, held)) / 3600 if control else None
    return Refinement(
        static=_sum(others),
        rounds=rounds,
        control=control,
        static_loss=static,
        refined_loss=refined,
        gain=gain,
        extra_hours=extra,
        unit="GPU-hour" if held == "gpu_s" else "CPU-hour",
        gain_per_hour=gain / extra if gain is not None and extra is not None and extra > 0 else None,
    )


def _is_of_rounds(stage: str, run: Run) -> bool:
    """Whether only refinement needs a stage; a static selection needs the reward model only for its quality."""
    return round_of(stage) is not None or (stage == "reward" and run.config.quality.source != "reward")


def _sum(timings: Sequence[Timing]) -> Usage:
    return sum((one.usage for one in timings if one.usage), Usage())
