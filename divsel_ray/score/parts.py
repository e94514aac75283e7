"""Units of scoring: what each reads and writes, and its counts.

A pool partition, or a shard of completions, is one unit, whose scores are written to their own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.data.hashing import id_array
from divsel_ray.errors import JobError
from divsel_ray.score.gaps import shard_exchanges
from divsel_ray.score.sample import read_exchanges
from divsel_ray.score.scorer import Exchange, Scorer
from divsel_ray.store import write_table

COUNTED = ("requests", "prompt_tokens", "output_tokens", "failed")
"""Columns of a judge's units that are summed."""
NO_COUNTS: dict[str, Any] = {
    **{"rows": 0, "missing": 0, "mean": 0.0, "squares": 0.0, "problem": "", "failure": "", "target": ""},
    **dict.fromkeys(COUNTED, 0),
}


@dataclass(frozen=True)
class Part:
    """A unit of work.

    Attributes:
        source: pool partition, or shard of completions (see `shard_exchanges`).
        target: file to write.
        column: name of the score column in that file.
        wanted: NumPy file of the ascending row ids to score; empty to score all.
    """

    source: str
    target: str
    column: str
    wanted: str = ""


def count_rows(parts: Sequence[Part]) -> int:
    """Total number of rows that the units have to score."""
    if parts and parts[0].wanted:
        return len(np.load(parts[0].wanted, mmap_mode="r"))
    return sum(pq.read_metadata(part.source).num_rows for part in parts)


def read_part(part: Part) -> list[Exchange]:
    """Read the exchanges of a unit that are to be scored."""
    if "prompt_messages" in pq.read_schema(part.source).names:
        return shard_exchanges(pq.read_table(part.source))
    if not part.wanted:
        return read_exchanges(part.source)
    held = id_array(pq.read_table(part.source, columns=["row_id"])["row_id"])
    ours = np.intersect1d(held, np.load(part.wanted, mmap_mode="r"))
    return read_exchanges(part.source, {row_id.decode() for row_id in ours.tolist()}) if len(ours) else []


def score_part(part: Part, load: Callable[[], Scorer]) -> dict[str, Any]:
    """Score a unit unless its file exists; returns its counts, and why the first exchange without a score has none.

    Args:
        part: the unit.
        load: returns the scorer; called only if there is something to score.

    Raises:
        InputError, JobError: the scorer failed.
    """
    problem = ""
    if not Path(part.target).is_file():
        exchanges = read_part(part)
        scores, signals = np.empty(0), dict[str, np.ndarray]()
        if exchanges:
            scorer = load()
            scores, signals, problem = scorer.score(exchanges), scorer.signals, scorer.problem
        write_part(part, pa.chunked_array([[exchange.row_id for exchange in exchanges]], pa.string()), scores, signals)
    return count_part(part) | {"problem": problem}


def write_part(part: Part, row_ids: pa.ChunkedArray, scores: np.ndarray, signals: Mapping[str, np.ndarray]) -> None:
    """Write row_id, the scores (null if not finite) and the raw signals behind them; each (n,)."""
    columns = {part.column: scores, **signals}
    arrays = {name: pa.array(values, mask=~np.isfinite(values)) for name, values in columns.items()}
    write_table(part.target, pa.table({"row_id": row_ids, **arrays}))


def count_part(part: Part) -> dict[str, Any]:
    """Count a finished unit: rows, missing scores, mean and sum of squared deviations of the others, and the `COUNTED` sums."""
    names = pq.read_schema(part.target).names
    table = pq.read_table(part.target, columns=[part.column, *(name for name in COUNTED if name in names)])
    column = table[part.column]
    scores = column.drop_null().to_numpy()
    mean = float(scores.mean()) if len(scores) else 0.0
    counts = {"rows": len(column), "missing": column.null_count, "mean": mean, "squares": float(((scores - mean) ** 2).sum())}
    sums = {name: int(table[name].to_numpy().sum()) for name in COUNTED if name in names}
    return NO_COUNTS | counts | sums | {"target": part.target}


def summarise(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the counts of all units, summed in the order of their names, whatever order they finished in.

    Raises:
        JobError: there are rows, but none has a score.
    """
    counts = sorted(counts, key=lambda count: str(count["target"]))
    rows, missing = (sum(count[name] for count in counts) for name in ("rows", "missing"))
    scored = [count["rows"] - count["missing"] for count in counts]
    if rows and not sum(scored):
        problem = next((count["problem"] for count in counts if count["problem"]), "no value is a finite number")
        raise JobError(f"none of {rows} rows could be scored: {problem}")
    divisor = max(1, sum(scored))
    mean = sum(n * count["mean"] for n, count in zip(scored, counts, strict=True)) / divisor
    squares = sum(count["squares"] + n * (count["mean"] - mean) ** 2 for n, count in zip(scored, counts, strict=True))
    return {"rows": rows, "missing": missing, "mean": mean, "sd": (squares / divisor) ** 0.5}
