"""The contenders of `bench_kmeans.py`, and the processes they run in.

    python jobs/bench_kmeans_contenders.py REQUEST.json

runs the contenders that the request names, one after the other, and writes beside it `outcomes.json` and each one's final
centroids. Every process notes when it stood ready and when it fitted, on the clock that all processes of a machine share;
whoever started it samples its memory meanwhile, so that the sampling neither waits for its locks nor adds to its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_kmeans_rows import read_float32

from divsel_ray.errors import JobError
from divsel_ray.store import write_json

if TYPE_CHECKING:
    import torch

OURS: dict[str, dict[str, Any]] = {
    "ours": {"mode": "memory"},
    "ours_progressive": {"mode": "memory", "progressive": True},
    "ours_one_shard": {"mode": "memory", "n_shards": 1},
    "ours_streaming": {"mode": "streaming"},
}
"""Arguments of `divsel_ray.KMeans` by contender."""
RIVALS = ("faiss", "sklearn_lloyd", "sklearn_elkan", "torch")
BLOCK = 65_536
"""Rows that PyTorch multiplies with all centroids at once."""
SETTLE_SECONDS = 0.5
"""How long a rival stands still before and after its fit, so that short ones are sampled too."""
POLL_SECONDS = 0.02
LOOK_SECONDS = 0.5
"""How often to look for new processes."""
GROWTH = 16 << 20
"""Bytes by which memory has grown before it is sampled again at once."""
SLIGHT = 1 << 20
"""Bytes by which a process must have changed to be looked at again then."""
SAMPLING_SHARE = 0.03
"""Share of one core that sampling may take while memory does not grow."""


@dataclass(frozen=True)
class Request:
    """What a process is asked to do.

    Attributes:
        contenders: names from `OURS` and `RIVALS`.
        rows: folder of Parquet files to cluster.
        tiny: a few of these rows, for the fit that brings up the actors.
        start: .npy file of the first centroids (k, d) float32.
        iterations: of Lloyd's loop, at most.
        threads: of a rival; shard actors of ours, each with one thread.
    """

    contenders: list[str]
    rows: str
    tiny: str
    start: str
    iterations: int
    threads: int


@dataclass(frozen=True)
class Outcome:
    """What one fit gave.

    Attributes:
        trace: (inertia, seconds since the loop began) of every iteration that saw all rows; the inertia is that of the
            centroids that entered it, the seconds are those at its end.
        iterations: done, those on fewer rows included.
        first_seconds: the first iteration; None where the library does not tell.
        seconds: the whole loop, without reading rows.
        idle: from when to when the process stood ready, its actors alive.
        fitting: from when to when it fitted, reading the rows included.
    """

    trace: list[tuple[float, float]]
    iterations: int
    first_seconds: float | None
    seconds: float
    idle: tuple[float, float]
    fitting: tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, proportional set size in bytes: of a process with its descendants, of the largest of those."""

    moment: float
    size: int
    largest: int = 0


# Contenders, each in a process of its own


def _run_ours(name: str, request: Request, idle: dict[int, tuple[float, float]]) -> tuple[Outcome, np.ndarray]:
    from divsel_ray import KMeans

    arguments = {"n_shards": request.threads, "tol": 0.0, **OURS[name]}
    start, shards = np.load(request.start), arguments["n_shards"]
    if shards not in idle:
        # Several starts, so that the actors live long enough to be sampled.
        tiny = KMeans(n_clusters=32, n_init=4, max_iter=5, **arguments)
        idle[shards], _ = _clocked(lambda: tiny.fit(request.tiny))
    model = KMeans(len(start), init=start, max_iter=request.iterations, **arguments)
    fitting, _ = _clocked(lambda: model.fit(request.rows))
    history, rows = model.history_, len(model.labels_)
    trace = [(float(record.inertia), float(record.seconds)) for record in history if record.rows == rows]
    seconds, first_seconds = float(history[-1].seconds), float(history[0].seconds)
    return Outcome(trace, len(history), first_seconds, seconds, idle[shards], fitting), model.cluster_centers_


def _run_faiss(name: str, request: Request) -> tuple[Outcome, np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(request.threads)
    start = np.load(request.start)
    k, dimension = start.shape
    idle, _ = _clocked(lambda: time.sleep(SETTLE_SECONDS))
    # A limit that 32 bits hold: above it faiss would cluster a sample.
    model = faiss.Kmeans(dimension, k, niter=request.iterations, max_points_per_centroid=10**9, min_points_per_centroid=1)
    fitting, _ = _clocked(lambda: _hold(request.rows, lambda rows: model.train(rows, init_centroids=start)))
    trace = [(float(record["obj"]), float(record["time"])) for record in model.iteration_stats or []]
    return Outcome(trace, len(trace), trace[0][1], trace[-1][1], idle, fitting), np.asarray(model.centroids)


def _run_sklearn(name: str, request: Request) -> tuple[Outcome, np.ndarray]:
    from sklearn.cluster import KMeans

    algorithm, start = name.removeprefix("sklearn_"), np.load(request.start)
    idle, _ = _clocked(lambda: time.sleep(SETTLE_SECONDS))
    # The rows are its own to change: a copy would only count against it.
    model = KMeans(len(start), init=start, n_init=1, max_iter=request.iterations, tol=0, algorithm=algorithm, copy_x=False)
    fitting, (began, ended) = _clocked(lambda: _hold(request.rows, lambda rows: _clocked(lambda: model.fit(rows))[0]))
    return Outcome([], int(model.n_iter_), None, ended - began, idle, fitting), model.cluster_centers_


def _run_torch(name: str, request: Request) -> tuple[Outcome, np.ndarray]:
    import torch

    torch.set_num_threads(request.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = torch.from_numpy(np.load(request.start)).to(device)
    idle, _ = _clocked(lambda: time.sleep(SETTLE_SECONDS))

    def fit(rows: np.ndarray) -> tuple[list[tuple[float, float]], torch.Tensor]:
        return _plain_lloyd(torch.from_numpy(rows).to(device), start, request.iterations)

    fitting, (trace, centroids) = _clocked(lambda: _hold(request.rows, fit))
    return Outcome(trace, len(trace), trace[0][1], trace[-1][1], idle, fitting), centroids.cpu().numpy()


def _plain_lloyd(rows: torch.Tensor, centroids: torch.Tensor, iterations: int) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """Lloyd's loop as one writes it in PyTorch: rows (n, d) and centroids (k, d) float32 on one device."""
    import torch

    trace, labels = [], torch.empty(len(rows), dtype=torch.long, device=rows.device)
    squares, began = rows.square().sum(dtype=torch.float64), time.perf_counter()
    for _ in range(iterations):
        half, inertia = centroids.square().sum(1) / 2, squares
        for at in range(0, len(rows), BLOCK):
            lowest, labels[at : at + BLOCK] = (half - rows[at : at + BLOCK] @ centroids.T).min(1)
            inertia = inertia + 2 * lowest.sum(dtype=torch.float64)
        counts = torch.bincount(labels, minlength=len(centroids))[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, labels, rows)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        # A GPU has done the iteration when its figure is here.
        trace.append((float(inertia), time.perf_counter() - began))
    return trace, centroids


_RUN: dict[str, Callable[[str, Request], tuple[Outcome, np.ndarray]]] = {"faiss": _run_faiss, "torch": _run_torch}


def _hold(folder: str, fit: Callable[[np.ndarray], Any]) -> Any:
    rows = read_float32(folder)
    answer = fit(rows)
    time.sleep(SETTLE_SECONDS)
    return answer


def _clocked(call: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """When a call began and ended, and its answer. Linux's monotonic clock is the same for all processes."""
    began = time.monotonic()
    answer = call()
    return (began, time.monotonic()), answer


def _answer(path: Path) -> None:
    request = Request(**json.loads(path.read_text(encoding="utf-8")))
    idle: dict[int, tuple[float, float]] = {}
    outcomes = {}
    for name in request.contenders:
        if name in OURS:
            outcome, centroids = _run_ours(name, request, idle)
        else:
            outcome, centroids = _RUN.get(name, _run_sklearn)(name, request)
        np.save(path.parent / f"{name}.npy", centroids)
        outcomes[name] = asdict(outcome)
    write_json(path.parent / "outcomes.json", outcomes)


# Their processes and memory


def run_process(request: Request, folder: Path) -> tuple[dict[str, Outcome], list[Sample]]:
    """Run contenders in a fresh process; their centroids are then in `folder`.

    Raises:
        JobError: it failed; says with which last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "request.json", asdict(request))
    with (folder / "errors.txt").open("wb") as errors:
        command = [sys.executable, str(Path(__file__).resolve()), str(folder / "request.json")]
        process = subprocess.Popen(command, env=_environment(request), stdout=errors, stderr=errors)
        try:
            samples = list(sample_until_end(process))
        finally:
            process.terminate()
    if process.wait() != 0:
        words = (folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise JobError(f"{', '.join(request.contenders)}: ended with code {process.returncode}: {words[-1] if words else ''}")
    answers = json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))
    return {name: Outcome(**answer) for name, answer in answers.items()}, samples


def _environment(request: Request) -> dict[str, str]:
    """A Ray of its own that starts no workers ahead, which would count as memory; for a rival, its threads."""
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in (*limits, "RAY_ADDRESS")}
    if request.contenders[0] in OURS:
        return kept | {"RAY_prestart_worker_first_driver": "0"}
    return kept | dict.fromkeys(limits, str(request.threads))


def sample_until_end(process: subprocess.Popen[bytes]) -> Iterator[Sample]:
    """Samples whenever memory has grown, or processes came or went, and now and then between.

    Proportional sizes cost the kernel a walk through the page tables; resident sizes, which cost nothing, say when it is time,
    and of which processes.
    """
    processes: list[int] = []
    known: dict[int, tuple[int, int]] = {}
    looked, highest, due = 0.0, 0, 0.0
    while process.poll() is None:
        now = time.monotonic()
        if now > looked + LOOK_SECONDS:
            found, looked = list(_descendants(process.pid)), now
            processes, highest = found, highest if found == processes else 0
        residents = {one: _resident_size(one) for one in processes}
        total = sum(residents.values())
        again = now > due
        if again or total > highest + GROWTH:
            worked, before = time.thread_time(), {} if again else known
            known = {one: _measure(one, resident, before.get(one, (0, 0))) for one, resident in residents.items()}
            sizes = {one: proportional for one, (_, proportional) in known.items()}
            yield Sample(now, sum(sizes.values()), max((sizes[one] for one in sizes if one != process.pid), default=0))
            due = now + (time.thread_time() - worked) / SAMPLING_SHARE if again else due
            highest = max(highest, total)
        time.sleep(POLL_SECONDS)


def _measure(process: int, resident: int, before: tuple[int, int]) -> tuple[int, int]:
    """Resident and proportional size; as they were before when the first has hardly changed."""
    return before if abs(resident - before[0]) < SLIGHT else (resident, _proportional_size(process))


def _descendants(process: int) -> Iterator[int]:
    """A process and its descendants; those that end meanwhile are left out."""
    yield process
    try:
        children = [task.read_text().split() for task in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return
    for child in (int(child) for group in children for child in group):
        yield from _descendants(child)


def _resident_size(process: int) -> int:
    """Bytes of a process, what it shares counted in full; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _proportional_size(process: int) -> int:
    """Bytes of a process, what it shares counted in equal parts; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
