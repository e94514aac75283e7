"""Benchmark of the samplers: time, memory above the input and candidates per second, compared with rivals where available.

    python jobs/bench_select.py --smoke
    python jobs/bench_select.py --embeddings EMBEDDINGS.npy.gz --json select.json
    python jobs/bench_select.py --cases 10m --samplers kmq,random --work FOLDER

| case | candidates | drawn | samplers | timed |
|---|---|---|---|---|
| 10m | 10,000,000 synthetic in 1,024 clusters, 100 + 100 Parquet files | 100,000 | those of keys | reading, drawing, writing |
| 55k | rows of `--embeddings`, else synthetic, in 256 clusters by `divsel_ray.KMeans` | 500, 2,000, 5,000 | all | drawing |

Every turn runs in a fresh process with `--threads` threads; the default of one is what Ray gives the task that draws.
- *10m*: the function of the job's Ray task, called without Ray, which would only add the start of a worker: it reads the output
  of the stages (row ids, clusters, distances, qualities), draws, and writes the rows. The files are written beforehand, and
  are still in the page cache if memory allows.
- *55k*: `select.draw.draw` on arrays in memory, after a warm-up draw of 2 of 256 rows that loads and compiles everything.
  Qualities are random normal unless `--quality` is given.
- *MB above*: peak resident size during the draw, minus that of the process before it and minus the candidates (row id,
  cluster, quality, and distance if used), which in 55k, like the vectors, are in memory before. *MB* is the total.

Rivals, at the largest budget of 55k only; their time is shown relative to the sampler they are compared with:
- numpy_kcenter: the usual loop over the distances of all rows to every new centre, in float32.
- sklearn_facility: scikit-learn's brute-force neighbours (64) and a lazy greedy heap in Python.
  The lazy greedy algorithms of libraries were slower on that graph (500 of 6,000 rows: the heap 2 s, apricot-select 17 s, about
  ten of them for compilation in every call, submodlib 170 s; all with the same rows) and are left out.

Choices are compared by two figures: the mean over all rows of the cosine to the nearest chosen row (the objective of facility
location), and the largest distance of a row to the nearest chosen one (the objective of k-center).

Bars: kmq draws 100,000 of 10 million rows in at most 10 s with at most 2 GB resident in total; facility draws 5,000 of 55k in
at most 60 s. Timings are noisy: times are the best of `--repeat` turns, memory is the worst; CPU seconds, which other work
hardly affects, indicate the time on a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from bench_options import check_known, machine, numbers, words
from bench_select_rivals import RIVALS
from bench_select_rows import Rows, prepare_arrays, prepare_files
from bench_select_runs import Outcome, Turn, run_process
from rich.console import Console
from rich.table import Table

from divsel_ray.errors import InputError, JobError
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Keyed
from divsel_ray.store import write_json

console = Console(stderr=True)
wide = Console(width=None if sys.stdout.isatty() else 150)

KEYED = tuple(name for name, sampler in SAMPLERS.items() if isinstance(sampler, Keyed))


@dataclass(frozen=True)
class Case:
    """Rows to draw from, and the contenders.

    Attributes:
        rows: number of rows.
        k: number of clusters.
        budgets: numbers of rows to draw, each in its own turn.
        contenders: samplers and rivals.
        per_file: rows per file; None for rows in memory.
        dimension: dimension of vectors in memory.
        real: whether `--embeddings` replaces the synthetic rows.
        together: whether all turns share a process, to import only once.
    """

    rows: int
    k: int
    budgets: tuple[int, ...]
    contenders: tuple[str, ...]
    per_file: int | None = None
    dimension: int = 384
    real: bool = False
    together: bool = False


CASES = {
    "10m": Case(10_000_000, 1024, (100_000,), KEYED, per_file=100_000),
    "55k": Case(55_185, 256, (500, 2_000, 5_000), (*SAMPLERS, *RIVALS), real=True),
}
SMOKE = {
    "10m": Case(20_000, 64, (200,), KEYED, per_file=5_000, together=True),
    "55k": Case(1_500, 16, (20, 60), (*SAMPLERS, *RIVALS), dimension=32, together=True),
}


@dataclass(frozen=True)
class Bar:
    """A bar, the measured value, and whether the bar is met."""

    case: str
    what: str
    measured: float
    limit: float
    met: bool


# Turns


def plan_turns(case: Case, rows: Rows) -> list[Turn]:
    """The turns of every contender; rivals draw the largest budget only."""
    largest = max(case.budgets)
    return [
        Turn(name, str(rows.folder), rows.count, rows.k, budget, case.per_file is not None)
        for name in case.contenders
        for budget in case.budgets
        if name not in RIVALS or budget == largest
    ]


def run_turns(turns: Sequence[Turn], repeat: int, threads: int, together: bool) -> dict[tuple[str, int], list[Outcome]]:
    """Take all turns `repeat` times, interleaved, and return the outcomes by name and budget.

    Raises:
        JobError: a turn failed.
    """
    outcomes: dict[tuple[str, int], list[Outcome]] = {(turn.name, turn.budget): [] for turn in turns}
    with tempfile.TemporaryDirectory(prefix="bench-select-") as folder:
        for at in range(repeat):
            groups = [list(turns)] if together else [[turn] for turn in turns]
            for number, group in enumerate(groups):
                for turn, outcome in zip(group, run_process(group, threads, Path(folder) / f"{at}-{number}"), strict=True):
                    outcomes[turn.name, turn.budget].append(outcome)
                    console.print(f"  {turn.name}, {turn.budget:,} rows, turn {at + 1} of {repeat}: {outcome.seconds:.3g} s")
    return outcomes


def figures(outcomes: dict[tuple[str, int], list[Outcome]], rows: int) -> list[dict[str, Any]]:
    """One entry per contender and budget: best time, worst memory."""
    entries = []
    for (name, budget), turns in outcomes.items():
        seconds = min(turn.seconds for turn in turns)
        entry = {
            "name": name,
            "budget": budget,
            "drawn": turns[-1].drawn,
            "seconds": seconds,
            "cpu_seconds": min(turn.cpu_seconds for turn in turns),
            "rows_per_second": rows / seconds,
            "bytes_above": max(turn.above for turn in turns),
            "resident_bytes": max(turn.resident for turn in turns),
            "mean_cosine": turns[-1].likeness,
            "largest_distance": turns[-1].radius,
        }
        entries.append({**entry, "time_ratio": _ratio(name, budget, seconds, outcomes)})
    return entries


def _ratio(name: str, budget: int, seconds: float, outcomes: dict[tuple[str, int], list[Outcome]]) -> float | None:
    """A rival's time relative to the sampler it is compared with."""
    ours = outcomes.get((RIVALS[name].of, budget)) if name in RIVALS else None
    return seconds / min(turn.seconds for turn in ours) if ours else None


def judge(case: str, entries: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """The bars that apply to these figures."""

    def at_most(what: str, measured: float, limit: float) -> Bar:
        return Bar(case, what, measured, limit, measured <= limit)

    for entry in entries:
        if case == "10m" and entry["name"] == "kmq":
            yield at_most("kmq: seconds", entry["seconds"], 10.0)
            yield at_most("kmq: GB resident", entry["resident_bytes"] / 1e9, 2.0)
        if case == "55k" and entry["name"] == "facility" and entry["budget"] == 5_000:
            yield at_most("facility, 5,000 rows: seconds", entry["seconds"], 60.0)


# Report


def print_case(out: Console, title: str, entries: Sequence[dict[str, Any]]) -> None:
    """Print the table of a case."""
    heads = "drawn,s,CPU s,rows/s,MB above,MB,/ ours,mean cosine,largest distance".split(",")
    table = Table("contender", title=title, title_justify="left", box=None)
    for head in heads:
        table.add_column(head, justify="right")
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['drawn']:,}",
            f"{entry['seconds']:.3g}",
            f"{entry['cpu_seconds']:.3g}",
            f"{entry['rows_per_second']:,.0f}",
            f"{entry['bytes_above'] / 1e6:,.0f}",
            f"{entry['resident_bytes'] / 1e6:,.0f}",
            *(_shown(entry[key]) for key in ("time_ratio", "mean_cosine", "largest_distance")),
        )
    out.print(table)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def print_bars(out: Console, bars: Sequence[Bar], title: str) -> None:
    """Print every bar, the measured value, and whether it is met."""
    table = Table("case", "bar", "measured", "limit", "", title=title, title_justify="left", box=None)
    for bar in bars:
        table.add_row(bar.case, bar.what, f"{bar.measured:.4g}", f"{bar.limit:.4g}", "met" if bar.met else "MISSED")
    out.print(table)


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="run both cases on a few rows, in a minute; without bars")
    parser.add_argument("--cases", type=words, default=list(CASES), metavar="LIST", help=f"default: {','.join(CASES)}")
    parser.add_argument("--samplers", type=words, metavar="LIST", help=f"subset of {','.join((*SAMPLERS, *RIVALS))}")
    parser.add_argument("--budgets", type=numbers, metavar="LIST", help="default: those of each case")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="turns of each contender; default: 1")
    parser.add_argument("--threads", type=int, default=1, help="threads per process; default: 1, as in a Ray task")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help=".npy or .npy.gz (n, d), rows of the case 55k")
    parser.add_argument("--quality", type=Path, metavar="FILE", help=".npy (n,), qualities of these rows; default: random normal")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder to keep the rows in; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser.parse_args(arguments)


def chosen_cases(options: argparse.Namespace) -> dict[str, Case]:
    """The cases to run, changed according to the options.

    Raises:
        InputError: a case or sampler is unknown, a number is below 1, nothing is left to run, or this system does not
            report memory.
    """
    check_known("cases", options.cases, CASES)
    check_known("samplers", options.samplers, (*SAMPLERS, *RIVALS))
    if min(options.threads, options.repeat, *(options.budgets or (1,))) < 1:
        raise InputError("--threads, --repeat and --budgets: expected integers of at least 1")
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("memory is read from /proc/self/status, which this system lacks; run on Linux")
    cases = {name: _changed((SMOKE if options.smoke else CASES)[name], options) for name in options.cases}
    if not any(case.contenders for case in cases.values()):
        raise InputError("--samplers: none of them belongs to these --cases; choose others")
    return cases


def _changed(case: Case, options: argparse.Namespace) -> Case:
    wanted = options.samplers or case.contenders
    able = [name for name in case.contenders if name in wanted]
    return replace(case, contenders=tuple(able), budgets=options.budgets or case.budgets)


def bench(name: str, case: Case, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run a case and return its entry of the JSON.

    Raises:
        InputError: a file cannot be used, or there are fewer rows than a budget.
        JobError: a contender failed.
    """
    rows = prepare(case, options, work)
    if max(case.budgets) > rows.count:
        raise InputError(f"--budgets {max(case.budgets)}: the case {name} has {rows.count:,} rows; ask for fewer")
    hint = "; name real ones with --embeddings" if case.real and options.embeddings is None else ""
    console.print(f"{name}: {rows.count:,} rows, {rows.origin}{hint}")
    outcomes = run_turns(plan_turns(case, rows), options.repeat, options.threads, case.together)
    entries = figures(outcomes, rows.count)
    print_case(wide, f"\n{name}: {rows.count:,} rows ({rows.origin}), k = {rows.k}", entries)
    bars = [] if options.smoke else [asdict(bar) for bar in judge(name, entries)]
    return {"case": name, "rows": rows.count, "k": rows.k, "origin": rows.origin, "turns": entries, "bars": bars}


def prepare(case: Case, options: argparse.Namespace, work: Path) -> Rows:
    """Prepare the rows of a case; if Ray was started to cluster them, stop it.

    Raises:
        InputError: a file cannot be used, or there is not enough disk space.
    """
    if case.per_file is not None:
        return prepare_files(case.rows, case.k, case.per_file, work)
    embeddings, running = options.embeddings if case.real else None, ray.is_initialized()
    rows = prepare_arrays((case.rows, case.dimension), case.k, embeddings, options.quality if case.real else None, work)
    if not running:
        ray.shutdown()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whether or not bars are met, 1 if a contender failed, 2 for invalid input."""
    options = parse(arguments)
    report: dict[str, Any] = {"machine": machine(), "threads": options.threads, "repeat": options.repeat, "cases": []}
    if report["machine"]["load"] > 0.5:
        console.print(f"load {report['machine']['load']:.1f}: other work slows every turn; wait for a quiet machine")
    try:
        cases = chosen_cases(options)
        with tempfile.TemporaryDirectory(prefix="bench-select-rows-") as temporary:
            for name, case in cases.items():
                if case.contenders:
                    report["cases"].append(bench(name, case, options, options.work or Path(temporary)))
                # A run takes long: keep the results so far if it is interrupted.
                if options.json:
                    write_json(options.json, report)
    except (InputError, JobError) as error:
        console.print(f"bench_select: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        return 2 if isinstance(error, InputError) else 1
    bars = [Bar(**bar) for entry in report["cases"] for bar in entry["bars"]]
    if bars:
        print_bars(wide, bars, "\nBars")
    return 0


if __name__ == "__main__":
    sys.exit(main())
