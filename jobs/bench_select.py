"""Benchmark of the samplers: time, memory above the input, candidates per second; beside rivals where there are any.

    python jobs/bench_select.py --smoke
    python jobs/bench_select.py --embeddings EMBEDDINGS.npy.gz --json select.json
    python jobs/bench_select.py --cases 10m --samplers kmq,random --work FOLDER

| case | candidates | drawn | samplers | within the time |
|---|---|---|---|---|
| 10m | 10,000,000 synthetic in 1,024 clusters, 100 + 100 Parquet files | 100,000 | those of keys | reading, drawing, writing |
| 55k | those of `--embeddings`, else synthetic, in 256 clusters by `divsel_ray.KMeans` | 500, 2,000, 5,000 | all | drawing |

What is measured. Every turn is a fresh process with `--threads` threads: one, as Ray gives the task that draws.
- *10m*: the function that is the job's Ray task, called here without Ray, for what Ray adds is the start of a worker and
  not the sampler's: it reads what the stages left (row ids, clusters, distances, qualities), draws, and writes the rows.
  The files are written before, and are still in the page cache if the machine has the room.
- *55k*: `select.draw.draw` on arrays that lie in memory, after a draw of 2 of 256 rows that loads and compiles what is
  needed. Qualities are random normal where `--quality` names none.
- *MB above*: the highest resident size during the draw, less what the process held before it and less the candidates (row
  id, cluster, quality; distance where asked for); in 55k these, and the vectors, are there before. *MB* is all of it.

Rivals, at the largest budget of 55k only; their time is shown over that of the sampler they stand beside:
- numpy_kcenter: the usual loop, every row's distance to every new centre, in float32.
- sklearn_facility: scikit-learn's brute-force neighbours (64) and a lazy greedy heap in Python.
  Libraries' own lazy greedy over that graph was slower in a trial (500 of 6,000 rows: the heap 2 s, apricot-select 17 s, some
  ten of them for what it compiles at every call, submodlib 170 s; all with the same rows), and they are left out.

Choices are held against each other by two figures: the mean over all rows of the cosine to the nearest chosen row (what
facility location is after), and the largest distance of a row to the nearest chosen one (what k-center is after).

Bars: kmq draws 100,000 of 10 million in at most 10 s with at most 2 GB resident in all; facility draws 5,000 of 55k in at
most 60 s. Machines are noisy: times are the best of `--repeat` turns, memory is the worst; CPU seconds, which other work
hardly changes, say what a quiet machine would take.
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
    """Rows to draw from, and who draws.

    Attributes:
        rows: how many.
        k: clusters.
        budgets: rows to draw; each is a turn of its own.
        contenders: samplers and rivals.
        per_file: rows of a file; None for rows that lie in memory.
        dimension: of the vectors in memory.
        real: whether `--embeddings` replaces the synthetic rows.
        together: whether all turns share a process, to save the imports.
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
    """A bar, what was measured, and whether that is good enough."""

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
    """Take all turns `repeat` times, interleaved; outcomes by name and budget.

    Raises:
        JobError: one failed.
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
    """One entry for each contender and budget: the best time, the worst memory."""
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
    """A rival's time over that of the sampler it stands beside."""
    ours = outcomes.get((RIVALS[name].of, budget)) if name in RIVALS else None
    return seconds / min(turn.seconds for turn in ours) if ours else None


def judge(case: str, entries: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """The bars that these figures can be held to."""

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
    """One table."""
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
    """Every bar, what was measured and whether it is met."""
    table = Table("case", "bar", "measured", "limit", "", title=title, title_justify="left", box=None)
    for bar in bars:
        table.add_row(bar.case, bar.what, f"{bar.measured:.4g}", f"{bar.limit:.4g}", "met" if bar.met else "MISSED")
    out.print(table)


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="both cases with few rows, in a minute; judges nothing")
    parser.add_argument("--cases", type=words, default=list(CASES), metavar="LIST", help=f"default: {','.join(CASES)}")
    parser.add_argument("--samplers", type=words, metavar="LIST", help=f"only these of {','.join((*SAMPLERS, *RIVALS))}")
    parser.add_argument("--budgets", type=numbers, metavar="LIST", help="in place of each case's own")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="turns of each; default: 1")
    parser.add_argument("--threads", type=int, default=1, help="of every process; default: 1, as a Ray task has")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help=".npy or .npy.gz (n, d), the rows of the case 55k")
    parser.add_argument("--quality", type=Path, metavar="FILE", help=".npy (n,), their qualities; default: random normal")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps the rows for the next time; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    return parser.parse_args(arguments)


def chosen_cases(options: argparse.Namespace) -> dict[str, Case]:
    """The cases to run, with what the options change.

    Raises:
        InputError: a case or sampler is unknown, a number is below 1, nothing is left to run, or this system does not
            count memory.
    """
    check_known("cases", options.cases, CASES)
    check_known("samplers", options.samplers, (*SAMPLERS, *RIVALS))
    if min(options.threads, options.repeat, *(options.budgets or (1,))) < 1:
        raise InputError("--threads, --repeat and --budgets: expected integers of at least 1")
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("memory is read from /proc/self/status, which this system lacks; run on Linux")
    cases = {name: _changed((SMOKE if options.smoke else CASES)[name], options) for name in options.cases}
    if not any(case.contenders for case in cases.values()):
        raise InputError("--samplers: none of them takes part in these --cases; choose others")
    return cases


def _changed(case: Case, options: argparse.Namespace) -> Case:
    wanted = options.samplers or case.contenders
    able = [name for name in case.contenders if name in wanted]
    return replace(case, contenders=tuple(able), budgets=options.budgets or case.budgets)


def bench(name: str, case: Case, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run a case; its entry of the JSON.

    Raises:
        InputError: a file cannot be used, or the rows are fewer than a budget.
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
    """The rows of a case; Ray, if it was started to cluster them, is stopped.

    Raises:
        InputError: a file cannot be used, or the disk has no room.
    """
    if case.per_file is not None:
        return prepare_files(case.rows, case.k, case.per_file, work)
    embeddings, running = options.embeddings if case.real else None, ray.is_initialized()
    rows = prepare_arrays((case.rows, case.dimension), case.k, embeddings, options.quality if case.real else None, work)
    if not running:
        ray.shutdown()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whether or not bars are met, 1 when a contender failed, 2 for wrong input."""
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
                # A run takes long: what it has found so far must survive its end.
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
