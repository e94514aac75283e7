"""The reward gap: how much better the data's completion scores than the model's own (Yu et al. 2024, Eq. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.store import atomic_path


def pair_exchanges(pairs: pa.Table) -> pa.Table:
    """Every prompt twice, as `ID:gold` and `ID:generated`, each with that completion: row_id, messages, completion."""
    kinds = [
        pa.table(
            {
                "row_id": [f"{row_id}:{kind}" for row_id in pairs["row_id"].to_pylist()],
                "messages": pairs["prompt_messages"],
                "completion": pairs[kind],
            }
        )
        for kind in ("gold", "generated")
    ]
    return pa.concat_tables(kinds)


def write_gaps(row_ids: list[str], held_out: set[str], scores: Path, target: Path) -> dict[str, Any]:
    """Join rewards by row id and write row_id, gold, generated, gap, held_out; report the means (None without rows)."""
    table = pq.read_table(scores)
    reward = dict(zip(table["row_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    gold = np.array([reward[f"{row_id}:gold"] for row_id in row_ids], dtype=np.float64)
    generated = np.array([reward[f"{row_id}:generated"] for row_id in row_ids], dtype=np.float64)
    apart = np.array([row_id in held_out for row_id in row_ids], dtype=bool)
    gap = gold - generated
    columns = {"row_id": row_ids, "gold": gold, "generated": generated, "gap": gap, "held_out": apart}
    with atomic_path(target) as path:
        pq.write_table(pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()}), path)
    return {
        "mean_gap": _mean(gap[~apart]),
        "held_out_gap": _mean(gap[apart]),
        "held_out_reward": _mean(generated[apart]),
        "missing": int(np.isnan(gap).sum()),
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
