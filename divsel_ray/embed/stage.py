"""Embedding on Ray Data: one pool partition is one unit of work, done whole by one actor.

Partitions are cut from the content, never from the cluster, so the batches, and with them the vectors, are the same
for any number of actors; a finished partition is a file and is not embedded again after a kill.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.actors import map_on_actors
from divsel_ray.config import EmbedConfig
from divsel_ray.embed.encoder import Encoder
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import atomic_path

_COLUMNS = {"prompt": ["prompt"], "prompt_completion": ["prompt", "completion"], "user_turns": ["messages"]}
"""What `texts_of` needs of the pool."""


def embed_pool(pool_files: list[str], config: EmbedConfig, folder: Path, cluster: Cluster, progress: Progress) -> dict[str, Any]:
    """Write one Parquet file (row_id, embedding: fixed-size list of float16) for each pool partition.

    Returns:
        {"rows", "dimension", "actors"}.

    Raises:
        JobError: the cluster gave the actors no place.
        RayError: an actor lost its process or node more than `MAX_RETRIES` times.
    """
    total = sum(pq.read_metadata(file).num_rows for file in pool_files)
    actors = cluster.count(config.workers, len(pool_files))
    items = [{"source": file, "target": str(folder / Path(file).name)} for file in pool_files]
    gpus = cluster.gpus_per_worker(config.workers)
    done, dimension = 0, 0
    for batch in map_on_actors(items, EmbedPartition, {"config": config}, "embed", config.workers, actors, cluster, gpus=gpus):
        done += int(batch["rows"][0])
        dimension = int(batch["dimension"][0])
        progress.advance(done, total, "rows")
    return {"rows": done, "dimension": dimension, "actors": actors}


class EmbedPartition:
    """An actor that holds the encoder and embeds one partition per call."""

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config
        self._encoder = Encoder(config)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed the partition file named in the batch of one, unless its output is there."""
        source, target = str(batch["source"][0]), Path(str(batch["target"][0]))
        if not target.exists():
            self._embed(source, target)
        rows = pq.read_metadata(target).num_rows
        return {"rows": np.array([rows]), "dimension": np.array([self._encoder.dimension])}

    def _embed(self, source: str, target: Path) -> None:
        table = pq.read_table(source, columns=["row_id", *_COLUMNS[self._config.text]])
        row_ids = table["row_id"].to_pylist()
        write_vectors(table["row_id"], self._encoder.encode(texts_of(table, self._config.text), row_ids), target)


def texts_of(table: pa.Table, text: str) -> list[str]:
    """What of each row is embedded, by the setting `embed.text`."""
    if text == "user_turns":
        conversations = table["messages"].to_pylist()
        return ["\n\n".join(turn["content"] for turn in turns if turn["role"] == "user") for turns in conversations]
    prompts = table["prompt"].to_pylist()
    if text == "prompt":
        return list(prompts)
    return [f"{prompt}\n{completion}" for prompt, completion in zip(prompts, table["completion"].to_pylist(), strict=True)]


def write_vectors(row_ids: pa.ChunkedArray, vectors: np.ndarray, target: Path) -> None:
    """Write Parquet with row_id and embedding. Vectors: (n, d) float16."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float16())
    embedding = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with atomic_path(target) as path:
        # Dictionaries would make the vectors ten times slower to read, and nothing about them can be compressed.
        pq.write_table(pa.table({"row_id": row_ids, "embedding": embedding}), path, use_dictionary=False, compression="none")
