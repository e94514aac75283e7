"""Growth of the figures of `bench_scale.py` with the rows, and their extrapolation to more rows on more machines.

A stage is modelled by lines `a + b x rows` with non-negative coefficients, fitted by least squares to the seconds in which all
CPUs work, the other seconds, its memory and the driver's memory. The growth exponent is the slope of log(figure) over
log(rows): 1 if twice the rows take twice as long. If it exceeds 1 at the largest sizes, the line underestimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from bench_scale_runs import ALONE, DRIVERS, STAGES, Figure
from scipy.optimize import nnls

GIB = 2**30


@dataclass(frozen=True)
class Line:
    """The line `a + b x rows`."""

    a: float
    b: float

    def at(self, rows: float) -> float:
        """The value at a number of rows."""
        return self.a + self.b * rows


@dataclass(frozen=True)
class StageModel:
    """How a stage grows.

    Attributes:
        points: number of measured sizes.
        exponent: growth exponent of the seconds, over all sizes; None for fewer than two.
        last_exponent: growth exponent of the seconds between the two largest sizes.
        seconds: all seconds, on the measured machine.
        parallel_seconds: seconds in which all CPUs of that machine work.
        gib: memory of all processes above idle.
        driver_gib: memory of the driver.
        alone_gib: memory of the working process of a stage with only one; None if all CPUs work.
    """

    points: int
    exponent: float | None
    last_exponent: float | None
    seconds: Line
    parallel_seconds: Line
    gib: Line
    driver_gib: Line
    alone_gib: Line | None


def fit_line(rows: Sequence[float], values: Sequence[float]) -> Line:
    """Fit a line with non-negative `a` and `b` by least squares; a single point gives the line through it and 0."""
    if len(rows) == 1:
        return Line(0.0, values[0] / rows[0])
    # Scale the columns to similar sizes, for the solver.
    scale = max(rows)
    (a, b), _ = nnls(np.array([[1.0, row / scale] for row in rows]), np.array(values))
    return Line(float(a), float(b / scale))


def exponent(rows: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of log(value) over log(rows) by least squares; None for fewer than two positive points."""
    points = [(math.log(row), math.log(value)) for row, value in zip(rows, values, strict=True) if value > 0]
    if len({x for x, _ in points}) < 2:
        return None
    return float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])


def fit_stages(sizes: Mapping[int, Mapping[str, Figure]]) -> dict[str, StageModel]:
    """Fit the model of every stage, in order.

    Args:
        sizes: figures by stage, by rows.
    """
    found = {name: {rows: sizes[rows][name] for rows in sorted(sizes) if name in sizes[rows]} for name in STAGES}
    return {name: _fit_stage(name, figures) for name, figures in found.items() if figures}


def _fit_stage(name: str, figures: Mapping[int, Figure]) -> StageModel:
    rows = list(figures)

    def values(of: Callable[[Figure], float]) -> list[float]:
        """The value of a figure for every size."""
        return [of(figure) for figure in figures.values()]

    seconds = values(lambda figure: figure.seconds)
    alone = values(lambda figure: (figure.driver if name in DRIVERS else figure.largest) / GIB)
    return StageModel(
        points=len(rows),
        exponent=exponent(rows, seconds),
        last_exponent=exponent(rows[-2:], seconds[-2:]),
        seconds=fit_line(rows, seconds),
        parallel_seconds=fit_line(rows, values(lambda figure: figure.parallel_seconds)),
        gib=fit_line(rows, values(lambda figure: figure.memory / GIB)),
        driver_gib=fit_line(rows, values(lambda figure: figure.driver / GIB)),
        alone_gib=fit_line(rows, alone) if name in ALONE else None,
    )


# More rows on more machines


@dataclass(frozen=True)
class Hardware:
    """The hardware of a plan: nodes, CPUs per node, and the price of a CPU hour."""

    nodes: int
    cpus: int
    cpu_hour: float


@dataclass(frozen=True)
class StagePlan:
    """A stage of a plan: hours, and GiB on the node that needs most."""

    hours: float
    node_gib: float


@dataclass(frozen=True)
class Plan:
    """Time, cost and resources for a number of rows, from the fitted lines.

    Attributes:
        rows: number of rows to select from.
        shards: `cluster.n_shards`: one per CPU, except the one that Ray keeps free.
        stages: stages by name.
        hours: hours of all stages.
        money: cost of all CPUs of all nodes for all hours.
        node_gib: memory that a node needs, including idle processes.
        driver_gib: part of it that the driver uses on its node.
        disk_gib: shared storage.
        times_measured: rows relative to the largest measured size.
    """

    rows: int
    shards: int
    stages: dict[str, StagePlan]
    hours: float
    money: float
    node_gib: float
    driver_gib: float
    disk_gib: float
    times_measured: float


def plan_rows(rows: int, hardware: Hardware, models: Mapping[str, StageModel], measured: Mapping[str, float]) -> Plan:
    """Extrapolate time, cost and resources to a number of rows.

    Seconds in which all CPUs work are divided by their number, the others are not. Memory on a node is `a`, scaled by its CPUs
    relative to the measured ones because every CPU has a worker, plus `b x rows`, divided by the nodes if all share the rows; if
    a single process works, the line of that process is used.

    Args:
        rows: number of rows to select from.
        hardware: nodes to run on.
        models: see `fit_stages`.
        measured: the measured machine: `cpus`, `idle_gib`, `disk_bytes_per_row`, and `rows` of the largest size.
    """
    stages = {name: _plan_stage(rows, hardware, model, measured["cpus"]) for name, model in models.items()}
    hours, cpus = sum(stage.hours for stage in stages.values()), hardware.nodes * hardware.cpus
    return Plan(
        rows=rows,
        shards=max(1, cpus - 1),
        stages=stages,
        hours=hours,
        money=hours * cpus * hardware.cpu_hour,
        node_gib=measured["idle_gib"] + max(stage.node_gib for stage in stages.values()),
        driver_gib=max(model.driver_gib.at(rows) for model in models.values()),
        disk_gib=rows * measured["disk_bytes_per_row"] / GIB,
        times_measured=rows / measured["rows"],
    )


def _plan_stage(rows: int, hardware: Hardware, model: StageModel, cpus: float) -> StagePlan:
    parallel = model.parallel_seconds.at(rows)
    alone = max(0.0, model.seconds.at(rows) - parallel)
    seconds = alone + parallel * min(1.0, cpus / (hardware.nodes * hardware.cpus))
    grows = model.alone_gib.b if model.alone_gib else model.gib.b / hardware.nodes
    return StagePlan(seconds / 3600, model.gib.a * max(1.0, hardware.cpus / cpus) + grows * rows)
