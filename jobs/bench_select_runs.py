"""One turn of `bench_select.py`, and its process.

    python jobs/bench_select_runs.py REQUEST.json

takes the turns named in the request, one after the other, and writes `outcomes.json` next to it. Memory is the resident size of
the process as recorded by the kernel, whose peak value is reset before each turn, so no sampling is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_select_rivals import RIVALS, spread
from bench_select_rows import load_arrays

from divsel_ray.config import SelectConfig
from divsel_ray.errors import JobError
from divsel_ray.select.draw import Demand, draw
from divsel_ray.select.plan import DrawFiles, DrawPlan
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates, Greedy
from divsel_ray.select.stage import draw_files
from divsel_ray.store import read_json, write_json

JUDGED = ("facility", "kcenter")
"""Samplers whose choices are measured, like those of their rivals."""
_WARM_ROWS = 256
_ID_BYTES, _CLUSTER_BYTES, _QUALITY_BYTES, _DISTANCE_BYTES = 32, 4, 8, 4


@dataclass(frozen=True)
class Turn:
    """Specification of a turn.

    Attributes:
        name: a sampler, or a rival if the rows are in memory.
        folder: folder of the rows.
        rows: number of rows.
        k: number of clusters.
        budget: number of rows to draw.
        files: whether the rows are files, whose reading is timed; otherwise they are arrays loaded beforehand.
    """

    name: str
    folder: str
    rows: int
    k: int
    budget: int
    files: bool


@dataclass(frozen=True)
class Outcome:
    """Measurements of a turn.

    Attributes:
        drawn: number of rows drawn.
        seconds: seconds of the draw.
        cpu_seconds: CPU seconds of all threads, which other work on the machine hardly affects.
        above: peak bytes besides the candidates and the memory of the process before the draw.
        resident: peak bytes of the process.
        likeness: mean over all rows of the cosine to the nearest chosen one; None if not requested.
        radius: largest distance of a row to the nearest chosen one; None if not requested.
    """

    drawn: int
    seconds: float
    cpu_seconds: float
    above: int
    resident: int
    likeness: float | None = None
    radius: float | None = None


class _Cost(NamedTuple):
    seconds: float
    cpu_seconds: float
    idle: int
    peak: int


def draw_from_files(turn: Turn) -> Outcome:
    """Draw like a job: its function reads the files and writes the chosen rows."""
    clusters, quality = (_parts(Path(turn.folder) / stage) for stage in ("clusters", "quality"))
    plan = DrawPlan(SelectConfig(sampler=turn.name), seed=0, budgets=[turn.budget])
    with tempfile.TemporaryDirectory(prefix="bench-select-") as folder:
        files = DrawFiles(clusters, quality)
        cost, facts = _measured(lambda: draw_files(files, turn.k, plan, folder, float("inf")))
    needs_distance = "distance" in SAMPLERS[turn.name].needs
    row_bytes = _ID_BYTES + _CLUSTER_BYTES + _QUALITY_BYTES + _DISTANCE_BYTES * needs_distance
    above = max(0, cost.peak - cost.idle - turn.rows * row_bytes)
    return Outcome(facts["rows"], cost.seconds, cost.cpu_seconds, above, cost.peak)


def draw_from_arrays(turn: Turn) -> Outcome:
    """Draw from rows in memory, after a warm-up draw from a few of them that loads and compiles everything."""
    candidates = load_arrays(Path(turn.folder), turn.k)
    choose = _rival(turn.name, candidates) if turn.name in RIVALS else _sampler(turn.name, candidates)
    choose(min(_WARM_ROWS, len(candidates)), 2)
    cost, chosen = _measured(lambda: choose(len(candidates), turn.budget))
    rival = RIVALS.get(turn.name)
    judged = turn.name in JUDGED or rival is not None
    value = spread(candidates.vectors, chosen) if judged and candidates.vectors is not None else (None, None)
    return Outcome(len(chosen), cost.seconds, cost.cpu_seconds, max(0, cost.peak - cost.idle), cost.peak, *value)


def _sampler(name: str, candidates: Candidates) -> Callable[[int, int], np.ndarray]:
    # As in a job, samplers of keys receive no vectors.
    every = candidates if isinstance(SAMPLERS[name], Greedy) else replace(candidates, vectors=None)
    none = np.empty(0, np.int64)

    def choose(rows: int, count: int) -> np.ndarray:
        some = every if rows == len(every) else every.take(np.arange(rows))
        return draw(some, none, Demand([count]), SelectConfig(sampler=name), 0).index

    return choose


def _rival(name: str, candidates: Candidates) -> Callable[[int, int], np.ndarray]:
    assert candidates.vectors is not None
    # float32, as these libraries require; the copy is made before memory is measured.
    vectors = candidates.vectors.astype(np.float32)
    return lambda rows, count: RIVALS[name].choose(vectors[:rows], count)


def _parts(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("part-*.parquet"))]


# Memory and processes


def _measured(call: Callable[[], Any]) -> tuple[_Cost, Any]:
    """Measure a call, and return its result too."""
    idle = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began, worked = time.perf_counter(), time.process_time()
    answer = call()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    return _Cost(seconds, cpu_seconds, idle, _memory("VmHWM")), answer


def _memory(field: str) -> int:
    """Bytes of this process: VmRSS is the current value, VmHWM the peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run_process(turns: Sequence[Turn], threads: int, folder: Path) -> list[Outcome]:
    """Take these turns in a fresh process.

    Raises:
        JobError: the process failed; the message contains its last line of output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "request.json", [asdict(turn) for turn in turns])
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(limits, str(threads))
    command = [sys.executable, str(Path(__file__).resolve()), str(folder / "request.json")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        words = ended.stderr.strip().splitlines()
        names = ", ".join(dict.fromkeys(turn.name for turn in turns))
        raise JobError(f"{names}: ended with code {ended.returncode}: {words[-1] if words else ''}")
    return [Outcome(**outcome) for outcome in read_json(folder / "outcomes.json")]


def _answer(path: Path) -> None:
    turns = [Turn(**turn) for turn in json.loads(path.read_text(encoding="utf-8"))]
    outcomes = [draw_from_files(turn) if turn.files else draw_from_arrays(turn) for turn in turns]
    write_json(path.parent / "outcomes.json", [asdict(outcome) for outcome in outcomes])


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
