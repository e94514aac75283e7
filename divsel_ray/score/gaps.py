"""The reward gap: how much higher the data's completion scores than the model's own (Yu et al. 2024, Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.score.scorer import Exchange
from divsel_ray.store import write_table


def shard_exchanges(shard: pa.Table) -> list[Exchange]:
    """The exchanges of a shard to score: `ID:gold` once for each prompt, and `ID:SAMPLE` for each completion.

    A prompt without any completion is left out, including its gold completion: it has no gap.

    Args:
        shard: row_id, sample, prompt_messages, gold and generated (null if missing); gold_cut and generated_cut, if it is
            known which texts were cut.
    """
    exchanges: dict[str, Exchange] = {}
    for row in shard.to_pylist():
        if row["generated"] is not None:
            for name, side in (("gold", "gold"), (str(row["sample"]), "generated")):
                row_id = f"{row['row_id']}:{name}"
                exchange = Exchange(row_id, row["prompt_messages"], row[side], bool(row.get(f"{side}_cut")))
                exchanges.setdefault(row_id, exchange)
    return list(exchanges.values())


def write_gaps(
    shards: Sequence[Path], rewards: Sequence[Path], seconds: Sequence[Path], held_out: set[str], target: Path
) -> dict[str, Any]:
    """Write a row for each prompt, in row id order, and return the means.

    Columns: row_id; gold, generated (mean over samples) and gap = gold - generated, null if either has no score;
    second_gap, the same for a second scorer (null without one); gold_tokens, generated_tokens (mean over samples), after both
    texts were cut to the same length; held_out.

    Args:
        shards: files of completions.
        rewards: files of their scores (row_id as in `shard_exchanges`, score), in any order.
        seconds: the same for the second scorer; empty without one.
        held_out: ids of rows that are never selected.
        target: the file to write.

    Returns:
        {"mean_gap", "held_out_gap", "held_out_reward": None without rows, "missing": number of prompts without a gap,
        "errors": number of prompts without a completion}.
    """
    columns = ["row_id", "sample", "gold_tokens", "generated_tokens"]
    rows = pa.concat_tables([pq.read_table(shard, columns=columns) for shard in shards]).sort_by("row_id").to_pylist()
    samples: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        samples.setdefault(row["row_id"], []).append(row)
    first, second = _scores(rewards), _scores(seconds)
    gold, generated = _pairs(samples, first)
    second_gold, second_generated = _pairs(samples, second)
    gap, apart = gold - generated, np.array([row_id in held_out for row_id in samples], dtype=bool)
    values = {
        "row_id": list(samples),
        "gold": gold,
        "generated": generated,
        "gap": gap,
        "second_gap": second_gold - second_generated,
        "gold_tokens": [group[0]["gold_tokens"] for group in samples.values()],
        "generated_tokens": np.array([_mean([row["generated_tokens"] for row in group]) for group in samples.values()]),
        "held_out": apart,
    }
    write_table(target, pa.table({name: pa.array(column, from_pandas=True) for name, column in values.items()}))
    return {
        "mean_gap": _known_mean(gap[~apart]),
        "held_out_gap": _known_mean(gap[apart]),
        "held_out_reward": _known_mean(generated[apart]),
        "missing": int(np.isnan(gap).sum()),
        "errors": int(np.isnan(values["generated_tokens"]).sum()),
    }


def _scores(files: Sequence[Path]) -> dict[str, float | None]:
    tables = [pq.read_table(file) for file in files]
    pairs = (zip(table["row_id"].to_pylist(), table["score"].to_pylist(), strict=True) for table in tables)
    return {row_id: score for part in pairs for row_id, score in part}


def _pairs(samples: dict[str, list[dict[str, Any]]], scores: dict[str, float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the gold and, averaged over samples, the generated completions, each (n,) float64; NaN if unknown."""
    gold = [scores.get(f"{row_id}:gold") for row_id in samples]
    generated = [_mean([scores.get(f"{row_id}:{row['sample']}") for row in group]) for row_id, group in samples.items()]
    return np.array(gold, dtype=np.float64), np.array(generated, dtype=np.float64)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else np.nan


def _known_mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
