"""The pool columns that the stage reads, and the files it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.embed.encoder import Encoder
from divsel_ray.store import write_table

_COLUMNS = {"prompt": ["prompt"], "prompt_completion": ["prompt", "completion"], "user_turns": ["messages"]}
"""Pool columns that `texts_of` needs."""


def embed_file(source: str, target: Path, encoder: Encoder, text: str) -> None:
    """Embed a pool partition unless that is done.

    Args:
        source: the partition.
        target: Parquet file to write (row_id, embedding: fixed-size list of float16).
        encoder: the encoder.
        text: the setting `embed.text`.

    Rows without a vector are left out.
    """
    if not target.exists():
        table = pq.read_table(source, columns=["row_id", *_COLUMNS[text]])
        vectors = encoder.encode(texts_of(table, text), table["row_id"].to_pylist())
        known = np.isfinite(vectors).all(axis=1)
        write_vectors(table["row_id"].filter(pa.array(known)), vectors[known], target)


def texts_of(table: pa.Table, text: str) -> list[str]:
    """Which part of each row is embedded, by the setting `embed.text`."""
    if text == "user_turns":
        conversations = table["messages"].to_pylist()
        return ["\n\n".join(turn["content"] for turn in turns if turn["role"] == "user") for turns in conversations]
    prompts = table["prompt"].to_pylist()
    if text == "prompt":
        return list(prompts)
    return [f"{prompt}\n{completion}" for prompt, completion in zip(prompts, table["completion"].to_pylist(), strict=True)]


def write_vectors(row_ids: pa.ChunkedArray, vectors: np.ndarray, target: Path) -> None:
    """Write a Parquet file with row_id and embedding; `vectors` is (n, d) float16."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float16())
    embedding = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    # Dictionaries would make the vectors ten times slower to read, and compression would save nothing.
    write_table(target, pa.table({"row_id": row_ids, "embedding": embedding}), use_dictionary=False, compression="none")
