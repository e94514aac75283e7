"""Benchmark of `divsel_ray.KMeans` against faiss and scikit-learn: time, inertia and memory, in one run on one machine.

    python jobs/bench_kmeans.py --smoke
    python jobs/bench_kmeans.py --embeddings EMBEDDINGS.npy.gz --json kmeans.json
    python jobs/bench_kmeans.py --cases 200k --k 1024 --work FOLDER
    python jobs/bench_kmeans.py --cases 1m --contenders ours,torch        # on a machine with a GPU, both on it

All contenders cluster the same Parquet files from the same initial centroids (distinct rows drawn at random), with 25
iterations, d = 384 and two threads; the case 10m makes 3 passes over rows that are never all in memory.

| case | rows | k | contenders |
|---|---|---|---|
| 55k | rows of `--embeddings`, else synthetic | 256, 1024, 2048 | ours, faiss, scikit-learn (Lloyd, Elkan), PyTorch |
| 200k | synthetic | 256, 1024, 2048 | the same; at k = 1024 also ours with one shard |
| 1m | synthetic | 1024 | without Elkan, whose bounds need n x k floats |
| 10m | synthetic | 1024 | ours, streaming |

- faiss-cpu's `Kmeans`, with `max_points_per_centroid` raised so that it also uses all rows; float32, as it requires.
- scikit-learn's `KMeans`, float32, `tol=0`; `copy_x=False`, so that the rows are in memory only once.
- a plain loop in PyTorch: a float32 product with all centroids, `min`, `index_add_`; on the GPU if one is available.
- ours, float16 rows in two partitions, each with its own thread of the single actor that one machine needs; and with
  `progressive=True`, which starts on a subset of the rows.

Each contender runs in a fresh process, its turns interleaved with the others'; times are the best of the repeats, memory is
the worst. Timings are noisy: trust the ratios within a run, not the seconds of different runs.
- *seconds per iteration*: seconds of the loop divided by the iterations done. A loop starts with the rows in memory and ends
  before labels are computed; for scikit-learn only the whole `fit` can be timed. A method that keeps bounds is slowest in its
  first iterations, so the first is shown as well; progressive iterations count no matter how many rows they used.
- *seconds to the target*: until the end of the first iteration whose inertia over all rows is at most 1.001 x faiss's final
  inertia. For faiss its own trace is used (it also measures the centroids that enter an iteration). The final centroids count
  at the end of the loop; nothing is interpolated.
- *inertia*: computed by the same function for all, from the final centroids over all rows, summed in float64.
- *memory*: proportional set size (shared pages are counted once) of the process and its descendants, which for ours are the
  driver and all of Ray; checked every 20 ms and sampled whenever it has grown by 16 MB. Above idle: minus the maximum
  during a fit of 256 rows with the same number of actors (ours), or after the imports (rivals).

Bars, on two cores: an iteration is no slower than faiss's; the target is reached in at most 0.4 of faiss's time for all its
iterations; memory above idle is at most 1.3 x the bytes of the rows + 300 MB; two shards are at least 1.7 x as fast as one;
10 million rows are clustered under 6 GiB resident.

Experiments with the algorithm, outside this script, on two cores with AMX (55k real embeddings, 25 iterations from random
rows, where plain Lloyd takes 25 full passes):
- One bound on the second nearest centroid, loosened by the largest drift (Hamerly): 17.0 passes at k = 1024, 18.6 at 256.
- The same bound, kept tight by one product with every centroid that moved at all: 6.9 and 14.5. Using only those that moved
  more than a quantile of the drifts: 6.6 (0.8) to 8.1 (0.95), and 12.1 to 13.6 at k = 256: not worth a setting.
- Without the bound, a row is reassigned whenever its own centroid moved away: 35 % of the rows in iteration 5 instead of a few
  percent.
- Products in float16 with float32 sums, on processors that support them (AMX, AVX512-FP16), with a bound on their error: a
  full pass at k = 1024 took 48 ms of one core, against 300 ms in float32; 0.7 % of the rows remain to be settled in float64.
- Such products need a compiled kernel for every shape. With shapes rounded to a few values, an iteration at k = 256 took
  0.044 s instead of 0.088, and actors grew by tens of MB less.
- Sums: index_add in float64 40 ms, a sparse product 45, NumPy's reduceat 222. Later only over rows that changed cluster.
- Minimum of each row of products: NumPy on the bits of float16, 7 ms; PyTorch's argmin, 95 to 130.
- Two actors and a coordinator, as on several machines, instead of one actor with two threads (55k, k = 256): 0.059 to 0.068 s
  per iteration instead of 0.053 to 0.058; twice the time on a busy machine, because every message waits for a CPU.
- Progressive samples save the first passes from 200k rows on; at 55k they gain nothing and end in another local optimum.

Experiments with the measurement itself:
- Reading proportional sizes of all processes at a fixed rate takes tens of milliseconds of a core per sample (14 processes of
  Ray and ours): either too rare to catch a peak, or a burden on the fit. Now resident sizes, which are cheap to read, decide
  when to sample which process.
- A tiny fit of a few milliseconds as the idle state ended before its actors were sampled: the figure varied by 70 MB between
  runs. Now it makes several starts.
- faiss's own objective was within 1e-5 of the float64 sum at a million rows, so its trace can be used.
- On a busy machine threads that wait for each other lose most: faiss was slower on two threads than on one. So the load is
  printed at the start and stored in the JSON; on such a machine the ratios flatter ours.

Synthetic rows resemble embeddings (see `bench_kmeans_rows.synthetic_rows`). The 10m case writes 8 GB to `--work`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_kmeans_contenders import OURS, RIVALS, Outcome, Request, Sample, run_process
from bench_kmeans_rows import Rows, first_centroids, prepare_rows, total_inertia
from bench_options import check_known, machine, numbers, words
from rich.console import Console
from rich.table import Table

from divsel_ray.errors import InputError, JobError
from divsel_ray.store import write_json

TARGET = 1.001
"""Target inertia relative to faiss's final inertia."""
_WITHOUT_ELKAN = ("ours", "ours_progressive", "faiss", "sklearn_lloyd", "torch")

console = Console(stderr=True)
wide = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class Case:
    """Rows to cluster, and the contenders.

    Attributes:
        rows: number of rows.
        clusters: values of k.
        contenders: contenders at every k.
        scaling: value of k at which ours also runs with one shard.
        repeat: number of turns of each contender.
        iterations: iterations of Lloyd's loop.
        real: whether `--embeddings` replaces the synthetic rows.
        together: whether our contenders share a process, to start Ray only once.
    """

    rows: int
    clusters: tuple[int, ...]
    contenders: tuple[str, ...]
    scaling: int | None = None
    repeat: int = 1
    iterations: int = 25
    real: bool = False
    together: bool = False

    def names(self, k: int) -> list[str]:
        """Contenders at this k."""
        return [*self.contenders, "ours_one_shard"] if k == self.scaling else list(self.contenders)


CASES = {
    "55k": Case(55_000, (256, 1024, 2048), (*_WITHOUT_ELKAN, "sklearn_elkan"), repeat=3, real=True),
    "200k": Case(200_000, (256, 1024, 2048), (*_WITHOUT_ELKAN, "sklearn_elkan"), scaling=1024),
    "1m": Case(1_000_000, (1024,), _WITHOUT_ELKAN),
    "10m": Case(10_000_000, (1024,), ("ours_streaming",), iterations=3),
}
SMOKE = Case(4_000, (16,), (*OURS, *RIVALS), iterations=10, together=True)


@dataclass(frozen=True)
class Run:
    """One turn of one contender: its outcome, the inertia of its centroids, and memory in bytes."""

    outcome: Outcome
    inertia: float
    above_idle: int
    resident: int

    def reached(self, target: float) -> float | None:
        """Seconds until the inertia was at most `target`; None if it never was."""
        trace = [*self.outcome.trace, (self.inertia, self.outcome.seconds)]
        return next((seconds for inertia, seconds in trace if inertia <= target), None)


@dataclass(frozen=True)
class Bar:
    """A bar, the measured value (None if it could not be measured), and whether the bar is met."""

    case: str
    k: int
    what: str
    measured: float | None
    limit: float
    met: bool


# Runs


def run_case(case: Case, k: int, rows: Rows, threads: int, folder: Path) -> dict[str, list[Run]]:
    """Take the turns of all contenders, interleaved; every other round runs in reverse order.

    Raises:
        InputError: too few rows are distinct.
        JobError: a contender failed.
    """
    start = folder / f"start-{k}.npy"
    np.save(start, first_centroids(rows.folder, k))
    names = case.names(k)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    ours = [name for name in names if name in OURS]
    groups = [ours] if case.together else [[name] for name in ours]
    groups += [[name] for name in names if name not in OURS]
    for turn in range(case.repeat):
        for group in groups if turn % 2 == 0 else groups[::-1]:
            request = Request(group, str(rows.folder), str(rows.tiny), str(start), case.iterations, threads)
            outcomes, samples = run_process(request, folder / f"{k}-{turn}-{group[0]}")
            for name, outcome in outcomes.items():
                centroids = np.load(folder / f"{k}-{turn}-{group[0]}" / f"{name}.npy")
                run = _to_run(outcome, samples, total_inertia(rows.folder, centroids))
                runs[name].append(run)
                seconds = outcome.seconds / outcome.iterations
                console.print(f"  k = {k}, {name}, turn {turn + 1} of {case.repeat}: {seconds:.4g} s per iteration")
    return runs


def _to_run(outcome: Outcome, samples: Sequence[Sample], inertia: float) -> Run:
    idle, peak = (_highest(samples, window) for window in (outcome.idle, outcome.fitting))
    return Run(outcome, inertia, max(0, peak - idle), peak)


def _highest(samples: Sequence[Sample], window: tuple[float, float]) -> int:
    """The maximum sample of a window; if the window contains none, the last one before its end."""
    began, ended = window
    before_end = [sample for sample in samples if sample.moment <= ended]
    inside = [sample for sample in before_end if sample.moment >= began]
    return max(sample.size for sample in inside or before_end[-1:])


# Figures


def figures(runs: list[Run], target: float | None) -> dict[str, Any]:
    """The figures of a contender over its turns: best times, worst memory, last inertia."""
    outcomes = [run.outcome for run in runs]
    firsts = [outcome.first_seconds for outcome in outcomes if outcome.first_seconds is not None]
    reached = [seconds for run in runs if target is not None and (seconds := run.reached(target)) is not None]
    return {
        "iterations": outcomes[-1].iterations,
        "seconds_per_iteration": min(outcome.seconds / outcome.iterations for outcome in outcomes),
        "first_iteration_seconds": min(firsts, default=None),
        "loop_seconds": min(outcome.seconds for outcome in outcomes),
        "fit_seconds": min(outcome.fitting[1] - outcome.fitting[0] for outcome in outcomes),
        "seconds_to_target": min(reached, default=None),
        "inertia": runs[-1].inertia,
        "memory_above_idle_bytes": max(run.above_idle for run in runs),
        "resident_bytes": max(run.resident for run in runs),
    }


def judge(name: str, k: int, table: dict[str, dict[str, Any]], rows_bytes: int) -> Iterator[Bar]:
    """The bars that apply to these contenders."""
    faiss, ours, one, streaming = (table.get(who) for who in ("faiss", "ours", "ours_one_shard", "ours_streaming"))

    def at_most(what: str, measured: float | None, limit: float) -> Bar:
        return Bar(name, k, what, measured, limit, measured is not None and measured <= limit)

    if ours and faiss:
        ratio = ours["seconds_per_iteration"] / faiss["seconds_per_iteration"]
        yield at_most("an iteration / faiss's", ratio, 1.0)
        to_target = divide(ours["seconds_to_target"], faiss["loop_seconds"])
        yield at_most("seconds to the target / all of faiss's", to_target, 0.4)
    if ours:
        yield at_most("MB above idle", ours["memory_above_idle_bytes"] / 1e6, 1.3 * rows_bytes / 1e6 + 300)
    if ours and one:
        faster = one["seconds_per_iteration"] / ours["seconds_per_iteration"]
        yield Bar(name, k, "two shards are faster than one by (at least)", faster, 1.7, faster >= 1.7)
    if streaming:
        yield at_most("streaming: GiB resident", streaming["resident_bytes"] / 2**30, 6.0)


def divide(value: float | None, by: float | None) -> float | None:
    """The ratio of two values, None if either is missing."""
    return None if value is None or by is None else value / by


# Report


def print_case(out: Console, title: str, contenders: dict[str, dict[str, Any]]) -> None:
    """Print the table of a case; every time is followed by its ratio to faiss's."""
    heads = "s/iteration,/ faiss,first,n,s to target,/ faiss all,/ faiss own,loop s,fit s,inertia / faiss,MB + idle,MB".split(",")
    table = Table("contender", title=title, title_justify="left", box=None)
    for head in heads:
        table.add_column(head, justify="right")
    faiss = contenders.get("faiss", dict.fromkeys(next(iter(contenders.values()))))
    for name, row in contenders.items():
        ratio = divide(row["seconds_per_iteration"], faiss["seconds_per_iteration"])
        cells = [row["seconds_per_iteration"], ratio, row["first_iteration_seconds"], row["iterations"]]
        cells += [row["seconds_to_target"], *(divide(row["seconds_to_target"], faiss[key]) for key in _FAISS_TIMES)]
        cells += [row["loop_seconds"], row["fit_seconds"], divide(row["inertia"], faiss["inertia"])]
        cells += [row["memory_above_idle_bytes"] / 1e6, row["resident_bytes"] / 1e6]
        table.add_row(name, *("-" if cell is None else f"{cell:.4g}" for cell in cells))
    out.print(table)


_FAISS_TIMES = ("loop_seconds", "seconds_to_target")


def print_bars(out: Console, bars: Sequence[Bar], title: str) -> None:
    """Print every bar, the measured value, and whether it is met."""
    table = Table("case", "k", "bar", "measured", "limit", "", title=title, title_justify="left", box=None)
    for bar in bars:
        measured = "never" if bar.measured is None else f"{bar.measured:.4g}"
        table.add_row(bar.case, str(bar.k), bar.what, measured, f"{bar.limit:.4g}", "met" if bar.met else "MISSED")
    out.print(table)


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="run every contender on a few rows, in a minute; without bars")
    parser.add_argument("--cases", type=words, default=list(CASES), metavar="LIST", help=f"default: {','.join(CASES)}")
    parser.add_argument("--k", type=numbers, metavar="LIST", help="numbers of clusters; default: those of each case")
    parser.add_argument("--contenders", type=words, metavar="LIST", help=f"subset of {','.join((*OURS, *RIVALS))}")
    parser.add_argument("--repeat", type=int, metavar="N", help="turns of each contender; default: 3 at 55k, else 1")
    parser.add_argument("--threads", type=int, default=2, help="threads of rivals, and shards of ours; default: 2")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help=".npy or .npy.gz (n, d), rows of the case 55k")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder to keep the rows in; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser.parse_args(arguments)


def chosen_cases(options: argparse.Namespace) -> dict[str, Case]:
    """The cases to run, changed according to the options.

    Raises:
        InputError: a case or contender is unknown, a number is below 1, or a requirement is missing.
    """
    check_known("cases", options.cases, CASES)
    check_known("contenders", options.contenders, (*OURS, *RIVALS))
    if min(options.threads, options.repeat or 1, *(options.k or (1,))) < 1:
        raise InputError("--threads, --repeat and --k: expected integers of at least 1")
    if not Path("/proc/self/smaps_rollup").exists():
        raise InputError("memory is read from /proc/PID/smaps_rollup, which this system lacks; run on Linux")
    cases = {"smoke": SMOKE} if options.smoke else {name: CASES[name] for name in options.cases}
    changed = {name: _changed(case, options) for name, case in cases.items()}
    if not any(case.names(k) for case in changed.values() for k in case.clusters):
        raise InputError("--contenders: none of them belongs to these --cases; choose others")
    return changed


def _changed(case: Case, options: argparse.Namespace) -> Case:
    kept = tuple(name for name in case.contenders if name in (options.contenders or case.contenders))
    scaling = case.scaling if "ours_one_shard" in (options.contenders or ["ours_one_shard"]) else None
    if "faiss" in kept and importlib.util.find_spec("faiss") is None:
        raise InputError("faiss is not installed; pip install faiss-cpu, or exclude it with --contenders")
    clusters, repeat = options.k or case.clusters, options.repeat or case.repeat
    return replace(case, clusters=clusters, contenders=kept, scaling=scaling, repeat=repeat)


def bench(name: str, case: Case, options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Run a case at every k, and return one entry of the JSON for each."""
    clusters = [k for k in case.clusters if case.names(k)]
    if not clusters:
        return
    rows = prepare_rows(case.rows, options.embeddings if case.real else None, work)
    hint = "; name real ones with --embeddings" if case.real and options.embeddings is None else ""
    console.print(f"{name}: {rows.count:,} rows, {rows.origin}{hint}")
    for k in clusters:
        with tempfile.TemporaryDirectory(prefix="bench-kmeans-") as folder:
            runs = run_case(case, k, rows, options.threads, Path(folder))
        target = TARGET * runs["faiss"][-1].inertia if "faiss" in runs else None
        contenders = {who: figures(turns, target) for who, turns in runs.items()}
        print_case(wide, f"\n{name}: {rows.count:,} x {rows.dimension} ({rows.origin}), k = {k}", contenders)
        bars = [asdict(bar) for bar in judge(name, k, contenders, 2 * rows.count * rows.dimension)]
        shape = {"rows": rows.count, "dimension": rows.dimension, "origin": rows.origin, "k": k, "repeat": case.repeat}
        yield {"case": name, **shape, "contenders": contenders, "bars": bars}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whether or not bars are met, 1 if a contender failed, 2 for invalid input."""
    options = parse(arguments)
    report: dict[str, Any] = {"machine": machine(), "threads": options.threads, "cases": []}
    if report["machine"]["load"] > 0.5:
        console.print(f"load {report['machine']['load']:.1f}: other work slows threaded rivals most; wait for a quiet machine")
    try:
        cases = chosen_cases(options)
        with tempfile.TemporaryDirectory(prefix="bench-kmeans-rows-") as temporary:
            for name, case in cases.items():
                for entry in bench(name, case, options, options.work or Path(temporary)):
                    report["cases"].append(entry)
                    # A run takes long: keep the results so far if it is interrupted.
                    if options.json:
                        write_json(options.json, report)
    except (InputError, JobError) as error:
        console.print(f"bench_kmeans: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        return 2 if isinstance(error, InputError) else 1
    bars = [Bar(**bar) for entry in report["cases"] for bar in entry["bars"]]
    print_bars(wide, bars, "\nBars" + (" (too few rows to be meaningful)" if options.smoke else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
