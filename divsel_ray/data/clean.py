"""The steps that clean a pool, on files and without Ray.

1. `write_benchmarks`: indexes the word n-grams of the benchmark texts.
2. `screen_part`: finds the rows of one pool file that are too short, too long or contain benchmark text; sketches the others.
3. The steps of `twins.py`: near duplicates among the remaining rows.
4. `write_clean_part`: writes one pool file without the removed rows, and a list of those.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from divsel_ray.config import CleanConfig
from divsel_ray.data.inputs import source_names
from divsel_ray.data.near_duplicates import banding
from divsel_ray.data.overlap import BenchmarkIndex, build_index, find_overlap
from divsel_ray.data.readers import read_records
from divsel_ray.data.remote import Input
from divsel_ray.data.sketches import write_sketches
from divsel_ray.data.twins import TwinFiles, twins_of
from divsel_ray.data.words import WordHasher, join_words
from divsel_ray.errors import InputError
from divsel_ray.store import atomic_path, read_json, write_json, write_table

REMOVED = "removed.jsonl"
STEPS = ("min_tokens", "max_tokens", "benchmark", "near_duplicate")
"""Steps that remove rows, in this order: a row is counted for the first that applies."""
_INDEX_ARRAYS = ("hashes", "row", "starts")
_SCREENED, _COUNTS = "screened.jsonl", "counts.json"


@dataclass(frozen=True)
class CleanLayout:
    """Locations of the files of a cleaning stage.

    Attributes:
        folder: the stage's folder; temporary files go to its `raw`.
        pool_files: the pool's Parquet files; part i is `pool_files[i]`.
    """

    folder: Path
    pool_files: tuple[str, ...]

    @property
    def raw(self) -> Path:
        """The folder of temporary files."""
        return self.folder / "raw"

    @property
    def benchmarks(self) -> Path:
        """The folder of the benchmark index."""
        return self.raw / "benchmarks"

    def part_folder(self, part: int) -> Path:
        """The folder with the result of screening one pool file."""
        return self.raw / f"part-{part:05d}"

    def removed(self, part: int) -> Path:
        """The list of rows removed from one pool file."""
        return self.raw / f"removed-{part:05d}.jsonl"

    def clean_part(self, part: int) -> Path:
        """One file of the clean pool."""
        return self.folder / Path(self.pool_files[part]).name

    def twin_files(self, threshold: float, pieces: int = 1) -> TwinFiles:
        """The files of the search for near duplicates."""
        folders = tuple(self.part_folder(part) for part in range(len(self.pool_files)))
        return TwinFiles(self.raw / "twins", folders, threshold, pieces)


def write_benchmarks(layout: CleanLayout, benchmarks: Sequence[Input], ngram: int) -> None:
    """Index the benchmark files in `layout.benchmarks`; skipped if already done. Needs about 16 bytes of memory per word.

    Raises:
        InputError: a row of a file cannot be read; ignoring it would leave contaminated rows in the pool.
    """
    if layout.benchmarks.exists():
        return
    places: list[str] = []
    index = build_index(_benchmark_rows(benchmarks, places), ngram)
    with atomic_path(layout.benchmarks) as folder:
        folder.mkdir()
        for name in _INDEX_ARRAYS:
            np.save(folder / f"{name}.npy", getattr(index, name), allow_pickle=False)
        write_json(folder / "places.json", {"lengths": index.lengths, "ngram": index.ngram, "places": places})


def _benchmark_rows(benchmarks: Sequence[Input], places: list[str]) -> Iterator[object]:
    """The rows of all files; the location of each is appended to `places`."""
    for name, file in zip(source_names(benchmarks), benchmarks, strict=True):
        for record in read_records(file):
            if record.reason is not None:
                raise InputError(f"clean.benchmarks: {file}: {record.position}: {record.reason}; fix or remove that row")
            places.append(f"{name} {record.position}")
            yield record.value


def _load_benchmarks(layout: CleanLayout) -> tuple[BenchmarkIndex, list[str]]:
    """The index with memory-mapped arrays, and the location of each benchmark row."""
    saved = read_json(layout.benchmarks / "places.json")
    arrays = {
        name: np.load(layout.benchmarks / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        for name in _INDEX_ARRAYS
    }
    return BenchmarkIndex(**arrays, lengths=tuple(saved["lengths"]), ngram=saved["ngram"]), saved["places"]


def screen_part(layout: CleanLayout, part: int, config: CleanConfig) -> None:
    """Screen one pool file on its own, and sketch the rest if near duplicates are removed. Skipped if already done."""
    if layout.part_folder(part).exists():
        return
    columns = ["row_id", "messages", "source", "n_tokens"]
    rows = pq.read_table(layout.pool_files[part], columns=columns).to_pylist()
    screen = _Screen(layout, config)
    with atomic_path(layout.part_folder(part)) as folder:
        folder.mkdir()
        kept, words = [], []
        with (folder / _SCREENED).open("w", encoding="utf-8") as stream:
            for number, row in enumerate(rows):
                found = screen.look_at(row)
                if isinstance(found, dict):
                    stream.write(json.dumps({"row": number, **found}, ensure_ascii=False) + "\n")
                else:
                    kept.append(number)
                    words.append(found)
        if config.near_duplicates is not None:
            write_sketches(folder, kept, [rows[number]["row_id"] for number in kept], words, banding(config.near_duplicates))


class _Screen:
    """Screens one row at a time, with caches for one process."""

    def __init__(self, layout: CleanLayout, config: CleanConfig) -> None:
        self._config, self._hasher = config, WordHasher()
        self._needs_words = bool(config.benchmarks) or config.near_duplicates is not None
        if config.benchmarks:
            self._index, self._places = _load_benchmarks(layout)

    def look_at(self, row: dict[str, Any]) -> dict[str, Any] | NDArray[np.uint64]:
        """Why a row is removed, or else its words (empty if no later step needs them)."""
        reason = _length_reason(row["n_tokens"], self._config)
        if reason is not None or not self._needs_words:
            return reason if reason is not None else np.empty(0, np.uint64)
        words = [self._hasher(message["content"]) for message in row["messages"]]
        if self._config.benchmarks:
            # The prompt and the completion, since both are used in training.
            overlap = find_overlap(self._index, [join_words(words[:-1]), words[-1]])
            if overlap is not None:
                reason_text = f"shares a run of {overlap.words} words with a benchmark row"
                return {"step": "benchmark", "reason": reason_text, "of": self._places[overlap.row]}
        # Without system messages: rows that share a long one would all look similar.
        roles = [message["role"] for message in row["messages"]]
        return join_words([text for text, role in zip(words, roles, strict=True) if role != "system"])


def _length_reason(tokens: int, config: CleanConfig) -> dict[str, Any] | None:
    if config.min_tokens is not None and tokens < config.min_tokens:
        return {"step": "min_tokens", "reason": f"{tokens:,} tokens, fewer than {config.min_tokens:,}", "of": None}
    if config.max_tokens is not None and tokens > config.max_tokens:
        return {"step": "max_tokens", "reason": f"{tokens:,} tokens, more than {config.max_tokens:,}", "of": None}
    return None


def write_clean_part(layout: CleanLayout, part: int, near_duplicates: float | None) -> dict[str, Any]:
    """Write one pool file without the removed rows, and the list of these to `layout.removed`. Skipped if already done.

    Returns:
        remaining `rows` and `tokens`, and `removed` (step to rows).
    """
    facts_path = layout.part_folder(part) / _COUNTS
    if not (facts_path.exists() and layout.clean_part(part).exists()):
        table = pq.read_table(layout.pool_files[part])
        going = {entry.pop("row"): entry for entry in _read_lines(layout.part_folder(part) / _SCREENED)}
        if near_duplicates is not None:
            going.update(_twins_of(layout, part, near_duplicates))
        stays = np.ones(len(table), dtype=bool)
        stays[list(going)] = False
        left = table.filter(pa.array(stays)).combine_chunks()
        _write_removed(layout.removed(part), table, going)
        counts = Counter(entry["step"] for entry in going.values())
        facts = {"rows": len(left), "tokens": pc.sum(left["n_tokens"]).as_py() or 0, "removed": {s: counts[s] for s in STEPS}}
        # The facts are written before the rows, so that they exist for every part written by this stage.
        write_json(facts_path, facts)
        write_table(layout.clean_part(part), left, compression="zstd")
    return dict(read_json(facts_path))


def _twins_of(layout: CleanLayout, part: int, threshold: float) -> dict[int, dict[str, Any]]:
    """The near duplicates of one pool file, by row number."""
    return {
        row: {
            "step": "near_duplicate",
            "reason": f"Jaccard {twin.jaccard:.3f} to the row that is kept"
            + ("" if twin.jaccard >= threshold else ", linked by rows in between"),
            "of": twin.kept,
        }
        for row, twin in twins_of(layout.twin_files(threshold), part).items()
    }


def _write_removed(path: Path, table: pa.Table, going: dict[int, dict[str, Any]]) -> None:
    order = sorted(going)
    rows = table.select(["row_id", "source"]).take(pa.array(order, pa.int64())).to_pylist()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for number, row in zip(order, rows, strict=True):
            entry = {"row_id": row["row_id"], "source": row["source"], **going[number]}
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def join_removed(layout: CleanLayout) -> None:
    """Join the lists of removed rows in the order of the pool files."""
    with atomic_path(layout.folder / REMOVED) as temporary, temporary.open("wb") as joined:
        for part in range(len(layout.pool_files)):
            with layout.removed(part).open("rb") as stream:
                shutil.copyfileobj(stream, joined)
