"""`divsel plan`: resources and cost of every stage of a job, as far as known before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from divsel_ray.config import Config
from divsel_ray.needs import Known, Need, needs_of, problem_of
from divsel_ray.pipeline import plan_job
from divsel_ray.resources import Cluster
from divsel_ray.select.allocation import round_sizes
from divsel_ray.stage_names import kind_of, round_of
from divsel_ray.store import MANIFEST, Stage, read_json
from divsel_ray.usage import Usage, usage_of


@dataclass(frozen=True)
class Line:
    """One stage of the plan; unknown values are None.

    Attributes:
        stage: name of the stage.
        key: key of its folder.
        cached: whether the run folder already contains it.
        rows: number of rows it produces.
        gib: total memory that its processes are known to need.
        cpus: CPUs that it occupies.
        gpus: GPUs that it occupies.
        hours: hours that this or another stage of its kind took in this folder.
        money: cost of those hours.
        problem: why the cluster cannot run it.
    """

    stage: str
    key: str
    cached: bool
    rows: int | None = None
    gib: float | None = None
    cpus: float = 0.0
    gpus: float = 0.0
    hours: float | None = None
    money: float | None = None
    problem: str | None = None


def plan_lines(config: Config, out: str | Path, cluster: Cluster) -> list[Line]:
    """The stages of a job in order, without running any.

    Raises:
        InputError: the input does not exist, or settings contradict one another.
    """
    stages = plan_job(config, out)
    known = known_of(stages)
    needs = needs_of(config, cluster, known)
    return [_line(stage, cached, config, cluster, needs.get(kind_of(stage.name)), known, out) for stage, cached in stages]


def known_of(stages: Iterable[tuple[Stage, bool]]) -> Known:
    """What the committed stages reveal about the pool."""
    facts = {kind_of(stage.name): stage.facts for stage, cached in stages if cached}
    rows = next((facts[kind]["rows"] for kind in ("embed", "clean") if kind in facts), None)
    if rows is None and "pool" in facts and "clean" not in {kind_of(stage.name) for stage, _ in stages}:
        rows = facts["pool"]["rows"]
    return Known(rows, facts["embed"]["dimension"] if "embed" in facts else None)


def _line(stage: Stage, cached: bool, config: Config, cluster: Cluster, need: Need | None, known: Known, out: str | Path) -> Line:
    rows = stage.facts.get("rows") if cached else _due_rows(stage, config, known)
    usage = _usage(stage, cached, Path(out))
    line = Line(stage.name, stage.key, cached, rows, **_cost(usage, config))
    if need is None:
        return line
    return replace(
        line,
        gib=None if need.gib is None else need.gib * need.count,
        cpus=need.workers.cpus * need.count,
        gpus=cluster.gpus_per_worker(need.workers) * need.count,
        problem=None if cached else problem_of(kind_of(stage.name), need, cluster),
    )


def _due_rows(stage: Stage, config: Config, known: Known) -> int | None:
    """Number of rows that a stage will produce."""
    if (number := round_of(stage.name)) is not None:
        return _drawn(config, number) if kind_of(stage.name) in ("draw", "train") else None
    if stage.name == "quality" and config.quality.oversample is not None:
        return _scored(stage, config, known)
    return known.rows if stage.name in ("clean", "embed", "cluster", "quality", "semantic") else None


def _scored(stage: Stage, config: Config, known: Known) -> int | None:
    """Number of rows scored under oversampling, not counting those added by rounding up in each cluster."""
    if known.rows is None:
        return None
    wanted, k = stage.identity["config"], config.cluster.resolved(known.rows).k or 1
    return min(known.rows, int(wanted["rows"] + wanted["held_out"] + wanted["probe"] * k))


def _drawn(config: Config, number: int) -> int | None:
    """Number of rows selected by the end of a round."""
    if config.budget_unit == "tokens" or config.allow_fewer:
        return None
    return config.budget if config.refine is None else sum(round_sizes(config.budget, config.refine.rounds)[:number])


def _usage(stage: Stage, cached: bool, out: Path) -> Usage | None:
    """Usage of a committed stage; for a due one, of the latest of its kind in this folder, whatever its settings or data."""
    if cached:
        return _recorded(stage.folder / MANIFEST)
    kind = kind_of(stage.name)
    here = sorted(out.glob(f"{stage.name}/*/{MANIFEST}"), key=_age)
    alike = sorted(out.glob(f"*/{kind}/*/{MANIFEST}"), key=_age) if kind != stage.name else []
    return next((found for path in [*here, *alike] if (found := _recorded(path))), None)


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _recorded(manifest: Path) -> Usage | None:
    try:
        record = read_json(manifest)
        return usage_of(record["facts"]) or Usage(wall_s=record["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cost(usage: Usage | None, config: Config) -> Mapping[str, Any]:
    if usage is None:
        return {}
    return {"hours": usage.wall_s / 3600, "money": usage.money(config.prices) if usage.cpu_s else None}


def due_totals(lines: Sequence[Line]) -> tuple[float, float, int]:
    """Known hours and cost of the due stages, and the number of due stages for which they are unknown."""
    due = [line for line in lines if not line.cached]
    hours, money = (sum(getattr(line, name) or 0.0 for line in due) for name in ("hours", "money"))
    return hours, money, sum(line.hours is None for line in due)


def print_plan(lines: Sequence[Line], cluster: Cluster, currency: str) -> None:
    """Print the plan as a table, followed by the totals of the due stages and the size of the cluster."""
    table = Table("stage", "state", box=None, pad_edge=False, header_style="dim")
    for name in ("rows", "GiB", "CPUs", "GPUs", "hours", currency, "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        numbers = [_known(line.rows, ",d"), _known(line.gib, ".1f"), f"{line.cpus:g}", f"{line.gpus:g}"]
        costs = [_known(line.hours, ".2f"), _known(line.money, ".2f")]
        table.add_row(line.stage, "cached" if line.cached else "due", *numbers, *costs, "no" if line.problem else "yes")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    hours, money, unknown = due_totals(lines)
    console.print(_due(sum(not line.cached for line in lines), hours, money, unknown, currency))
    size = f"{cluster.cpus:g} usable CPUs, {cluster.gpus:g} GPUs, {cluster.memory_gib:.1f} GiB"
    fits = "not every stage fits" if any(line.problem for line in lines) else "every stage fits"
    console.print(f"{cluster.nodes} node(s), {size}: {fits}")


def _due(count: int, hours: float, money: float, unknown: int, currency: str) -> str:
    """The expected time and cost of the due stages, in words."""
    if not count:
        return "nothing is due"
    if unknown == count:
        return f"due: {count} stages; their time and cost are unknown before a first run in this folder"
    known = f"{hours:.2f} hours, {money:.2f} {currency}, based on earlier stages of the same kinds in this folder"
    return f"due: at least {known} ({unknown} of {count} stages are unknown)" if unknown else f"due: {known}"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
