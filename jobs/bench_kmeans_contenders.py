"""The contenders of `bench_kmeans.py`, and their processes.

    python jobs/bench_kmeans_contenders.py REQUEST.json

runs the contenders named in the request, one after the other, and writes `outcomes.json` and the final centroids of each to the
folder of the request. Every process records when it was idle and when it fitted, on the clock shared by all processes of a
machine; its parent samples its memory meanwhile, so that sampling neither waits for its locks nor adds to its memory.
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
"""Number of rows that PyTorch multiplies with all centroids at once."""
SETTLE_SECONDS = 0.5
"""How long a rival sleeps before and after its fit, so that short fits are sampled too."""
POLL_SECONDS = 0.02
LOOK_SECONDS = 0.5
"""How often to look for new processes."""
GROWTH = 16 << 20
"""Growth of memory in bytes that triggers another sample immediately."""
SLIGHT = 1 << 20
"""Change in bytes from which a process is measured again in such a sample."""
SAMPLING_SHARE = 0.03
"""Share of one core that sampling may use while memory does not grow."""


@dataclass(frozen=True)
class Request:
    """The task of a process.

    Attributes:
        contenders: names from `OURS` and `RIVALS`.
        rows: folder of Parquet files to cluster.
        tiny: folder with a few of these rows, for the fit that starts the actors.
        start: .npy file with the initial centroids (k, d) float32.
        iterations: maximum number of iterations of Lloyd's loop.
        threads: threads of a rival; shards of ours, each with one thread.
    """

    contenders: list[str]
    rows: str
    tiny: str
    start: str
    iterations: int
    threads: int


@dataclass(frozen=True)
class Outcome:
    """Result of one fit.

    Attributes:
        trace: (inertia, seconds since the start of the loop) of every iteration over all rows; the inertia is that of the
            centroids that entered it, the seconds are those at its end.
        iterations: number of iterations, including those on fewer rows.
        first_seconds: seconds of the first iteration; None if the library does not report it.
        seconds: seconds of the whole loop, without reading rows.
        idle: start and end of the time when the process was ready, with its actors alive.
        fitting: start and end of the fit, including reading the rows.
    """

    trace: list[tuple[float, float]]
    iterations: int
    first_seconds: float | None
    seconds: float
    idle: tuple[float, float]
    fitting: tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """Proportional set size in bytes at one moment: of a process with its descendants, and of the largest of these."""

    moment: float
    size: int
    largest: int = 0


# Contenders, each in its own process


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
    # The limit must fit in 32 bits; with more points per centroid faiss would cluster a sample.
    model = faiss.Kmeans(dimension, k, niter=request.iterations, max_points_per_centroid=10**9, min_points_per_centroid=1)
    fitting, _ = _clocked(lambda: _hold(request.rows, lambda rows: model.train(rows, init_centroids=start)))
    trace = [(float(record["obj"]), float(record["time"])) for record in model.iteration_stats or []]
    return Outcome(trace, len(trace), trace[0][1], trace[-1][1], idle, fitting), np.asarray(model.centroids)


def _run_sklearn(name: str, request: Request) -> tuple[Outcome, np.ndarray]:
    from sklearn.cluster import KMeans

    algorithm, start = name.removeprefix("sklearn_"), np.load(request.start)
    idle, _ = _clocked(lambda: time.sleep(SETTLE_SECONDS))
    # It may modify the rows: a copy would only add to its memory.
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
    """Lloyd's loop in plain PyTorch: rows (n, d) and centroids (k, d) float32 on one device."""
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
        # A GPU has finished the iteration once its inertia has been copied.
        trace.append((float(inertia), time.perf_counter() - began))
    return trace, centroids


_RUN: dict[str, Callable[[str, Request], tuple[Outcome, np.ndarray]]] = {"faiss": _run_faiss, "torch": _run_torch}


def _hold(folder: str, fit: Callable[[np.ndarray], Any]) -> Any:
    rows = read_float32(folder)
    answer = fit(rows)
    time.sleep(SETTLE_SECONDS)
    return answer


def _clocked(call: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Start and end of a call, and its result. On Linux the monotonic clock is shared by all processes."""
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
    """Run contenders in a fresh process, which writes their centroids to `folder`.

    Raises:
        JobError: the process failed; the message contains its last line of output.
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
    """Environment of the process: no prestarted Ray workers, which would count as memory, or the threads of a rival."""
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in (*limits, "RAY_ADDRESS")}
    if request.contenders[0] in OURS:
        return kept | {"RAY_prestart_worker_first_driver": "0"}
    return kept | dict.fromkeys(limits, str(request.threads))


def sample_until_end(process: subprocess.Popen[bytes]) -> Iterator[Sample]:
    """Samples memory whenever it has grown or processes have started or ended, and occasionally in between.

    For proportional sizes the kernel must walk the page tables; resident sizes, which are cheap, decide when to sample and which
    processes.
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
    """Resident and proportional size; the previous ones if the resident size has hardly changed."""
    return before if abs(resident - before[0]) < SLIGHT else (resident, _proportional_size(process))


def _descendants(process: int) -> Iterator[int]:
    """A process and its descendants, without those that end meanwhile."""
    yield process
    try:
        children = [task.read_text().split() for task in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return
    for child in (int(child) for group in children for child in group):
        yield from _descendants(child)


def _resident_size(process: int) -> int:
    """Resident bytes of a process, with shared pages counted in full; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _proportional_size(process: int) -> int:
    """Proportional bytes of a process, with shared pages divided among their users; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
