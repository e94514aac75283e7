"""The labelled pools of `bench_coverage.py`: their rows, the task of each row, and how pools are thinned."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import gammaln

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.data.conversation import BadRow, canonicalise, row_id
from divsel_ray.data.formats import from_prompt_completion
from divsel_ray.data.hashing import uniform_hash
from divsel_ray.data.readers import known_suffix, read_records
from divsel_ray.errors import InputError
from divsel_ray.store import digest

UNLABELLED = -1
LARGEST, EXPONENT, SMALLEST = 200, 0.6, 4
"""Number of rows of a thinned pool's largest task, exponent of the decay with the rank, and minimum rows of a task."""


@dataclass(frozen=True)
class Labelled:
    """The distinct rows of a labelled file, in ascending order of their ids.

    Attributes:
        row_ids: (n,) S32, ids of the canonical conversations, as in a job.
        position: (n,) position of the record in the file, the first one of duplicates.
        task: (n,) int, task of that record.
        tasks: names of the tasks.
        read: number of records in the file.
        bad: number of records that are not valid conversations.
    """

    row_ids: np.ndarray
    position: np.ndarray
    task: np.ndarray
    tasks: list[str]
    read: int
    bad: int


@dataclass(frozen=True)
class Pool:
    """Rows to draw from, in ascending order of their ids, with their tasks, which only the measurement may use.

    Attributes:
        name: name of the pool.
        row_ids: (n,) S32.
        vectors: (n, d) float16.
        quality: (n,) float64, NaN if unknown.
        task: (n,) int; UNLABELLED for a row without a task. It is never passed to a sampler.
        budgets: numbers of rows to draw, ascending.
    """

    name: str
    row_ids: np.ndarray
    vectors: np.ndarray
    quality: np.ndarray
    task: np.ndarray
    budgets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, index: np.ndarray, name: str, budgets: tuple[int, ...]) -> Pool:
        """The pool of the rows at these ascending positions (or under this mask)."""
        columns = (self.row_ids, self.vectors, self.quality, self.task)
        return Pool(name, *(column[index] for column in columns), budgets)

    @property
    def task_sizes(self) -> np.ndarray:
        """Number of rows of each task that has any."""
        sizes = np.bincount(self.task[self.task != UNLABELLED])
        return sizes[sizes > 0]

    def covered(self, chosen: np.ndarray) -> float:
        """Share of the tasks with at least one chosen row."""
        tasks = np.unique(self.task[chosen])
        return int((tasks != UNLABELLED).sum()) / len(self.task_sizes)

    def expected_of_random(self, budget: int) -> float:
        """Mean of `covered` over uniform draws of this many rows without replacement (hypergeometric)."""
        left = len(self) - self.task_sizes
        missed = np.exp(_log_choose(left, budget) - _log_choose(np.array(len(self)), budget))
        return float(1.0 - np.where(left >= budget, missed, 0.0).mean())


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(np.maximum(n - k, 0) + 1))


def read_labelled(path: Path) -> Labelled:
    """Read rows of `task`, `prompt` and `completion`; duplicates count once, as in a job.

    Raises:
        InputError: the file does not exist, a row has a different structure, or no row is valid.
    """
    if not path.is_file() or known_suffix(path) is None:
        raise InputError(f"--pool {path}: no such file; expected a .jsonl or .jsonl.gz file")
    found: dict[str, tuple[int, str]] = {}
    read = bad = 0
    for position, record in enumerate(read_records(path)):
        read += 1
        if record.reason or not isinstance(record.value, dict) or not isinstance(record.value.get("task"), str):
            problem = record.reason or "expected an object with task, prompt and completion"
            raise InputError(f"--pool {path}: {record.position}: {problem}")
        try:
            messages = canonicalise(from_prompt_completion(record.value), "first")
        except BadRow:
            bad += 1
            continue
        found.setdefault(row_id(messages), (position, record.value["task"]))
    if not found:
        raise InputError(f"--pool {path}: none of its {read:,} rows has a prompt and a completion")
    ids = sorted(found)
    tasks, task = np.unique([found[one][1] for one in ids], return_inverse=True)
    positions = np.array([found[one][0] for one in ids], np.int64)
    return Labelled(np.array(ids, "S32"), positions, task, tasks.tolist(), read, bad)


# Thinning


def skewed_sizes(tasks: int) -> np.ndarray:
    """Sizes (tasks,) of a realistically skewed pool: `LARGEST` x rank ** -`EXPONENT`, at least `SMALLEST`."""
    ranks = np.arange(1, tasks + 1, dtype=np.float64)
    return np.maximum(SMALLEST, np.rint(LARGEST * ranks**-EXPONENT)).astype(np.int64)


def thinned(pool: Pool, names: Sequence[str]) -> np.ndarray:
    """Mask (n,) of the labelled rows to keep: the rank of a task and its rows are drawn by hashes.

    Args:
        pool: rows to thin.
        names: names of the tasks, by number.
    """
    present = np.unique(pool.task[pool.task != UNLABELLED])
    ranked = sorted(present.tolist(), key=lambda task: digest(names[task]))
    keys = uniform_hash(0, "bench coverage: rows of a task", pool.row_ids)
    kept = np.zeros(len(pool), bool)
    for task, size in zip(ranked, skewed_sizes(len(ranked)), strict=True):
        kept[_smallest(np.flatnonzero(pool.task == task), keys, int(size))] = True
    return kept


def sample(pool: Pool, mask: np.ndarray, count: int) -> np.ndarray:
    """Mask (n,) of `count` of the rows under a mask, chosen by a hash; all of them if there are fewer."""
    keys = uniform_hash(0, "bench coverage: sample", pool.row_ids)
    kept = np.zeros(len(pool), bool)
    kept[_smallest(np.flatnonzero(mask), keys, count)] = True
    return kept


def _smallest(rows: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    return rows[np.argsort(keys[rows], kind="stable")[:count]]


# Synthetic


def synthetic_pool(tasks: int, rows: int, others: int) -> tuple[Pool, list[str]]:
    """A pool of `tasks` with `rows` each and `others` without a task; the vectors of each group scatter around a direction."""
    generator = np.random.default_rng(0)
    task = np.concatenate([np.repeat(np.arange(tasks), rows), np.full(others, UNLABELLED)])
    ids = _ids(f"{number} of {label}" for number, label in enumerate(task.tolist()))
    centres = generator.normal(size=(tasks + 1, 32))
    vectors = centres[task] + 1.2 * generator.normal(size=(len(task), 32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quality, order = generator.normal(size=len(task)), np.argsort(ids)
    names = [f"task {number}" for number in range(tasks)]
    return Pool("even", ids[order], vectors[order].astype(np.float16), quality, task[order], ()), names


def _ids(texts: Iterable[str]) -> np.ndarray:
    return np.array([hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts], "S32")
