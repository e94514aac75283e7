"""Benchmark of a complete static selection over growing pools: time and memory of every stage, growth, a plan for more rows.

    python jobs/bench_scale.py --smoke
    python jobs/bench_scale.py --json scale.json
    python jobs/bench_scale.py --rows 10m --work FOLDER --json scale-10m.json
    python jobs/bench_scale.py --from scale.json --plan 100m --nodes 8 --cpus 32 --cpu-hour 0.05

Measured are `run_job`, as called by `divsel run`, with given vectors (`embed.given`) and quality from a column, and the report
that `divsel run` writes. Rows are synthetic and written beforehand: JSON Lines of short, distinct texts, and Parquet of float16
vectors by row id (see `bench_scale_rows.py`). Each size has its own driver process, its own local Ray and its own run folder.

| stage | work in this benchmark | executed by |
|---|---|---|
| pool | parse, hash, deduplicate, sort by row id, count tokens | all CPUs |
| embed | align the given vectors, normalize, write | all CPUs |
| cluster | k-means on a sample, then every row's cluster | all CPUs |
| quality | read the column | all CPUs |
| draw, diversity | kMQ; compare the selection with random subsets | one task each |
| result, report | texts of the selection, manifest; report.html | the driver |

- *seconds*: from the end of the previous stage to the end of this one, including the driver's digests of files and the commit,
  which are also shown separately (*single process*). Ray's start is excluded.
- *GiB above idle*: peak proportional set size of the driver and everything it started, including Ray, minus that of the driver
  and Ray before the job. Sampled whenever it has grown by 16 MB (see `bench_kmeans.py`).
- *driver*: peak resident size of the driver alone, including its libraries, as recorded by the kernel.
- *exponent*: slope of log seconds over log rows, over all sizes and between the two largest. It is below 1 as long as a
  constant part, such as the start of workers, is significant.

Settings of k-means, for pools of any size: `fit_rows` of 256 per cluster (as in faiss), `progressive`, at most 25 iterations,
and one shard per CPU. They are printed and stored in the JSON with the fitted lines.

Bars: a million rows within 6 GiB above idle, and the driver under 1 GiB.

`--plan` extrapolates the time and resources for more rows from the fitted lines, and prints how far that exceeds the measured
sizes. It assumes that all CPUs share the work perfectly and that network and storage keep up: the cost is a lower bound.

Disk: at most 3 KB per row at d = 384 (10 million rows: 29 GB), mostly for the vectors, which are stored once as input and once
in the run. Without `--work` everything is in a temporary folder. With it, an interrupted size resumes at the stage, or at the
part of the rows, where it stopped, and figures of finished sizes are kept there and not measured again; rows and runs are
removed as soon as their size is done. Times need a quiet machine, memory does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_options import machine
from bench_scale_model import GIB, Hardware, Line, Plan, StageModel, fit_stages, plan_rows
from bench_scale_rows import QUALITY, Rows, disk_bytes, used_bytes, write_rows
from bench_scale_runs import STAGES, Figure, measure
from rich.console import Console
from rich.table import Table

from divsel_ray.config import ClusterConfig, Config, EmbedConfig, PoolConfig, QualityConfig, SelectConfig
from divsel_ray.errors import InputError, JobError, first_line
from divsel_ray.store import digest, read_json, write_json

console = Console(stderr=True)
wide = Console(width=None if sys.stdout.isatty() else 150)

SMOKE = {"rows": [1_000, 4_000], "dimension": 32, "k": 16}
VERSION = 1
"""Version of the stored figures; increment it when their contents or the way they are measured changes."""
JUDGED_ROWS = 1_000_000
MEMORY_LIMIT_GIB, DRIVER_LIMIT_GIB = 6.0, 1.0
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Size:
    """Measurements of one size.

    Attributes:
        rows: number of rows in the pool.
        stages: figures of the stages by name, in order.
        idle: bytes of all processes before the job.
        disk: bytes of the rows and the run at the end.
        load: load average of the minute before the start.
    """

    rows: int
    stages: dict[str, Figure]
    idle: int
    disk: int
    load: float

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(figure.seconds for figure in self.stages.values())

    @property
    def memory(self) -> int:
        """Peak bytes of all processes above idle."""
        return max(figure.memory for figure in self.stages.values())

    @property
    def driver(self) -> int:
        """Peak bytes of the driver."""
        return max(figure.driver for figure in self.stages.values())


@dataclass(frozen=True)
class Bar:
    """A bar, the measured value, and whether the bar is met."""

    rows: int
    what: str
    measured: float
    limit: float
    met: bool


# Sizes


def job_config(rows: Rows, k: int, budget_share: float) -> Config:
    """The job: a static selection by kMQ."""
    return Config(
        budget=max(1, round(budget_share * rows.count)),
        pool=PoolConfig(data=[str(rows.texts)], score_column=QUALITY),
        embed=EmbedConfig(given=str(rows.vectors)),
        cluster=cluster_config(k),
        quality=QualityConfig(source=f"column:{QUALITY}"),
        select=SelectConfig(sampler="kmq"),
    )


def cluster_config(k: int) -> ClusterConfig:
    """The settings of k-means described above."""
    return ClusterConfig(k=k, fit_rows=256 * k, progressive=True, max_iter=25, n_shards=os.cpu_count() or 1)


def run_size(count: int, options: argparse.Namespace, work: Path) -> Size:
    """Write the rows, run the job and remove both; if the figures are already in `work`, only read them.

    Raises:
        InputError: there is not enough disk space.
        JobError: the job failed.
    """
    settings = {"rows": count, "dimension": options.dimension, "k": options.k, "budget_share": options.budget_share}
    settings |= {"version": VERSION}
    kept, folder = work / f"size-{count}-{digest(settings)}.json", work / f"size-{count}-{digest(settings)}"
    if kept.exists():
        console.print(f"{count:,} rows: already measured, see {kept}; remove this file to measure again", soft_wrap=True)
        return read_size(read_json(kept))
    console.print(f"{count:,} rows: at most {disk_bytes(count, options.dimension) / 1e9:.2g} GB in {folder}", soft_wrap=True)
    rows, load = write_rows(folder / "rows", count, options.dimension), os.getloadavg()[0]
    config = job_config(rows, options.k, options.budget_share)
    stages, idle = measure(config, folder, lambda name, figure: console.print(f"  {name}: {figure.seconds:.1f} s"))
    size = Size(count, stages, idle, used_bytes(folder), load)
    write_json(kept, asdict(size))
    shutil.rmtree(folder)
    return size


def read_size(record: Mapping[str, Any]) -> Size:
    """Read a size from its JSON."""
    return Size(**{**record, "stages": {name: Figure(**figure) for name, figure in record["stages"].items()}})


def judge(sizes: Sequence[Size]) -> Iterator[Bar]:
    """The bars that apply to these sizes."""
    for size in sizes:
        if size.rows == JUDGED_ROWS:
            memory, driver = size.memory / GIB, size.driver / GIB
            yield Bar(size.rows, "GiB above idle, all processes", memory, MEMORY_LIMIT_GIB, memory <= MEMORY_LIMIT_GIB)
            yield Bar(size.rows, "GiB resident, driver", driver, DRIVER_LIMIT_GIB, driver < DRIVER_LIMIT_GIB)


# Report


def print_sizes(out: Console, sizes: Sequence[Size], models: Mapping[str, StageModel]) -> None:
    """Print a row per stage, with the seconds, those of a single process, memory and driver memory of each size."""
    table = Table("stage", title="\nseconds (single process), GiB above idle, GiB of the driver", title_justify="left", box=None)
    for size in sizes:
        table.add_column(f"{size.rows:,} rows, load {size.load:.1f}", justify="right")
    for head in ("exponent", "two largest"):
        table.add_column(head, justify="right")
    for name, model in models.items():
        cells = [_cell(size.stages[name]) if name in size.stages else "-" for size in sizes]
        table.add_row(name, *cells, *(_shown(slope) for slope in (model.exponent, model.last_exponent)))
    totals = [f"{size.seconds:,.1f}, {size.memory / GIB:.2f}, {size.driver / GIB:.2f}" for size in sizes]
    table.add_row("all", *totals)
    out.print(table)


def _cell(figure: Figure) -> str:
    alone = figure.seconds - figure.parallel_seconds
    return f"{figure.seconds:,.1f} ({alone:,.1f}), {figure.memory / GIB:.2f}, {figure.driver / GIB:.2f}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_bars(out: Console, bars: Sequence[Bar]) -> None:
    """Print every bar, the measured value, and whether it is met."""
    table = Table("rows", "bar", "measured", "limit", "", title="\nBars", title_justify="left", box=None)
    for bar in bars:
        table.add_row(f"{bar.rows:,}", bar.what, f"{bar.measured:.2f}", f"{bar.limit:g}", "met" if bar.met else "MISSED")
    out.print(table)


def print_plan(out: Console, plan: Plan, hardware: Hardware) -> None:
    """Print the plan, stating that it is extrapolated."""
    title = f"\n{plan.rows:,} rows on {hardware.nodes} nodes of {hardware.cpus} CPUs"
    table = Table("stage", title=title, title_justify="left", box=None)
    for head in ("hours", "GiB on the fullest node"):
        table.add_column(head, justify="right")
    for name, stage in plan.stages.items():
        table.add_row(name, f"{stage.hours:.3f}", f"{stage.node_gib:.1f}")
    out.print(table)
    needs = (
        f"{plan.node_gib:.1f} GiB a node, {plan.driver_gib:.1f} GiB for the driver, {plan.disk_gib:,.0f} GiB of shared storage"
    )
    out.print(f"cluster.n_shards={plan.shards}; {needs}", soft_wrap=True)
    out.print(f"{plan.hours:.2f} hours, cost {plan.money:,.2f} at {hardware.cpu_hour:g} per CPU hour", soft_wrap=True)
    out.print(
        f"Extrapolated: {plan.times_measured:,.0f} times the rows of the largest size measured, linearly, assuming that CPUs "
        "share the work perfectly and are like those measured",
        soft_wrap=True,
    )


# Command line


def counts(text: str) -> list[int]:
    """Parse comma-separated numbers, sorted in ascending order: `10k,100k,1m`."""
    try:
        return sorted({_count(word) for word in text.lower().split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of at least 1 such as 10k,100k,1m") from None


def _count(word: str) -> int:
    unit = _UNITS.get(word[-1:], 1)
    number = int(word[:-1]) * unit if unit > 1 else int(word)
    if number < 1:
        raise ValueError(word)
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="run 1k and 4k rows in 32 dimensions, in a minute; without bars")
    parser.add_argument("--rows", type=counts, default=counts("10k,100k,1m"), metavar="LIST", help="default: 10k,100k,1m")
    parser.add_argument("--dimension", type=int, default=384, help="default: 384")
    parser.add_argument("--k", type=int, default=1024, help="clusters; default: 1024")
    parser.add_argument("--budget-share", type=float, default=0.01, help="share of the rows to select; default: 0.01")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder to resume in; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and the fitted model to this file")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="FILE", help="plan from an earlier --json; measure nothing")
    parser.add_argument("--plan", type=counts, metavar="ROWS", help="plan for this many rows, e.g. 100m")
    parser.add_argument("--nodes", type=int, default=1, help="nodes in the plan; default: 1")
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="CPUs per node in the plan; default: all here")
    parser.add_argument("--cpu-hour", type=float, default=0.0, help="price of one CPU hour; default: 0")
    options = parser.parse_args(arguments)
    return argparse.Namespace(**{**vars(options), **(SMOKE if options.smoke else {})})


def check(options: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        InputError: an option is wrong; the message names it.
    """
    if min(options.dimension, options.k, options.nodes, options.cpus) < 1:
        raise InputError("--dimension, --k, --nodes, --cpus: expected integers of at least 1")
    if not 0 < options.budget_share <= 1 or options.cpu_hour < 0:
        raise InputError("--budget-share: expected a share above 0, at most 1; --cpu-hour: expected a price of at least 0")
    if options.k > min(options.rows):
        raise InputError(f"--k {options.k}: exceeds the {min(options.rows):,} rows of the smallest size; lower it")
    if options.earlier and not options.plan:
        raise InputError("--from: measures nothing; name the rows to plan for with --plan")
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("memory is read from /proc/PID/smaps_rollup, which this system lacks; run on Linux")


def run_sizes(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure every size and return the JSON, which is also written after each of them.

    Raises:
        InputError, JobError: a size cannot be measured.
    """
    about = machine()
    if about["load"] > 0.5:
        console.print(f"load {about['load']:.1f}: other work slows every stage; wait for a quiet machine")
    cluster = cluster_config(options.k).model_dump(exclude={"workers"})
    console.print(f"cluster: {', '.join(f'{name} {value}' for name, value in cluster.items())}", soft_wrap=True)
    settings = {"dimension": options.dimension, "k": options.k, "budget_share": options.budget_share, "cluster": cluster}
    sizes: list[Size] = []
    for count in options.rows:
        sizes.append(run_size(count, options, work))
        report = {"machine": about, "settings": settings, **figures(sizes, judged=not options.smoke)}
        # A run takes long: keep the results so far if it is interrupted.
        if options.json:
            write_json(options.json, report)
    return report


def figures(sizes: Sequence[Size], *, judged: bool) -> dict[str, Any]:
    """The sizes, the fitted model and the bars, for JSON."""
    models = fit_stages({size.rows: size.stages for size in sizes})
    largest = max(sizes, key=lambda size: size.rows)
    measured = {
        "cpus": float(os.cpu_count() or 1),
        "rows": largest.rows,
        "idle_gib": largest.idle / GIB,
        "disk_bytes_per_row": largest.disk / largest.rows,
    }
    bars = [asdict(bar) for bar in judge(sizes)] if judged else []
    model = {name: asdict(model) for name, model in models.items()}
    return {"sizes": [asdict(size) for size in sizes], "measured": measured, "model": model, "bars": bars}


def read_models(report: Mapping[str, Any]) -> dict[str, StageModel]:
    """Read the fitted model from its JSON."""
    return {name: _read_model(report["model"][name]) for name in STAGES if name in report["model"]}


def _read_model(record: Mapping[str, Any]) -> StageModel:
    values: dict[str, Any] = {key: Line(**value) if isinstance(value, dict) else value for key, value in record.items()}
    return StageModel(**values)


def read_report(path: Path) -> dict[str, Any]:
    """Read the output of an earlier `--json`.

    Raises:
        InputError: the file does not exist or was not written by `--json`.
    """
    try:
        report: dict[str, Any] = read_json(path)
        read_models(report), [read_size(size) for size in report["sizes"]], report["measured"], report["bars"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--from {path}: not a file that --json wrote ({first_line(error)})") from None
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whether or not bars are met, 1 if a job failed, 2 for invalid input."""
    options = parse(arguments)
    try:
        check(options)
        with tempfile.TemporaryDirectory(prefix="bench-scale-") as temporary:
            work = options.work or Path(temporary)
            report = read_report(options.earlier) if options.earlier else run_sizes(options, work)
    except (InputError, JobError) as error:
        console.print(f"bench_scale: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        return 2 if isinstance(error, InputError) else 1
    models = read_models(report)
    print_sizes(wide, [read_size(size) for size in report["sizes"]], models)
    if report["bars"]:
        print_bars(wide, [Bar(**bar) for bar in report["bars"]])
    hardware = Hardware(options.nodes, options.cpus, options.cpu_hour)
    for rows in options.plan or ():
        print_plan(wide, plan_rows(rows, hardware, models, report["measured"]), hardware)
    return 0


if __name__ == "__main__":
    sys.exit(main())
