"""How the figures of `bench_scale.py` grow with the rows, and what they say of more rows on more machines.

The model of a stage is a line, `a + b x rows` with neither below 0, by least squares: of its seconds in which all CPUs work,
of its other seconds, of its memory and of the driver's. The growth exponent is the slope of log(figure) over log(rows): 1
where twice the rows take twice as long. Where it lies above 1 at the largest sizes, the line says too little.
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
    """`a + b x rows`."""

    a: float
    b: float

    def at(self, rows: float) -> float:
        """Its value."""
        return self.a + self.b * rows


@dataclass(frozen=True)
class StageModel:
    """How a stage grows.

    Attributes:
        points: sizes measured.
        exponent: of its seconds, over all sizes; None of fewer than two.
        last_exponent: of its seconds, between the two largest sizes.
        seconds: all of them, on the machine measured.
        parallel_seconds: those in which all of that machine's CPUs work.
        gib: of all processes above idle.
        driver_gib: of the driver.
        alone_gib: of the one process that works, where only one does; None where all CPUs do.
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
    """The line with `a` and `b` of at least 0 that is nearest to the values, by least squares; of one point, through it and 0."""
    if len(rows) == 1:
        return Line(0.0, values[0] / rows[0])
    # Columns of like size, for the solver's sake.
    scale = max(rows)
    (a, b), _ = nnls(np.array([[1.0, row / scale] for row in rows]), np.array(values))
    return Line(float(a), float(b / scale))


def exponent(rows: Sequence[float], values: Sequence[float]) -> float | None:
    """Slope of log(value) over log(rows) by least squares; None of fewer than two points above 0."""
    points = [(math.log(row), math.log(value)) for row, value in zip(rows, values, strict=True) if value > 0]
    if len({x for x, _ in points}) < 2:
        return None
    return float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0])


def fit_stages(sizes: Mapping[int, Mapping[str, Figure]]) -> dict[str, StageModel]:
    """The model of every stage, in their order.

    Args:
        sizes: figures by stage, by rows.
    """
    found = {name: {rows: sizes[rows][name] for rows in sorted(sizes) if name in sizes[rows]} for name in STAGES}
    return {name: _fit_stage(name, figures) for name, figures in found.items() if figures}


def _fit_stage(name: str, figures: Mapping[int, Figure]) -> StageModel:
    rows = list(figures)

    def values(of: Callable[[Figure], float]) -> list[float]:
        """One of every size."""
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
    """What a plan is for: nodes, CPUs of each, and the price of a CPU for an hour."""

    nodes: int
    cpus: int
    cpu_hour: float


@dataclass(frozen=True)
class StagePlan:
    """A stage of a plan: hours, and GiB on the node that has most."""

    hours: float
    node_gib: float


@dataclass(frozen=True)
class Plan:
    """What so many rows would take, by the fitted lines.

    Attributes:
        rows: to select from.
        shards: `cluster.n_shards`: one for each CPU but the one that Ray keeps free.
        stages: by name.
        hours: of all stages.
        money: all CPUs of all nodes, for all hours.
        node_gib: memory that a node needs, idle processes included.
        driver_gib: of these, on the node of the driver: the driver's own.
        disk_gib: shared storage.
        times_measured: rows over those of the largest size measured.
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
    """What so many rows take.

    Seconds in which all CPUs work shrink with their number, the others do not. Memory on a node is `a` times its CPUs over
    those measured, for every CPU has a worker, and `b x rows`: divided by the nodes where all share them, and where one process
    works, by the line of that process alone.

    Args:
        rows: to select from.
        hardware: where.
        models: see `fit_stages`.
        measured: of the machine measured: `cpus`, `idle_gib`, `disk_bytes_per_row`, and `rows` of the largest size.
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
