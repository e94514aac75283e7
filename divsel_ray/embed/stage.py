"""Embedding on Ray Data: each pool partition is a unit of work, embedded by one actor.

Partitions depend on the content, never on the cluster, so the batches, and with them the vectors, are the same
for any number of actors; a finished partition is a file and is not embedded again after a kill.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from divsel_ray.actors import map_on_actors
from divsel_ray.config import EmbedConfig
from divsel_ray.embed.api_stage import embed_by_api
from divsel_ray.embed.encoder import load_encoder
from divsel_ray.embed.files import embed_file
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster


def embed_pool(pool_files: list[str], config: EmbedConfig, folder: Path, cluster: Cluster, progress: Progress) -> dict[str, Any]:
    """Write one Parquet file (row_id, embedding: fixed-size list of float16) for each pool partition.

    Returns:
        {"rows", "dimension", "actors"}; for a server also the other counts of `embed_by_api`.

    Raises:
        InputError: the model cannot be loaded, or a server's key, model or address is wrong.
        JobError: the cluster has no resources for the actors, or a server's spending limit is reached.
        RayError: an actor lost its process or node more than `MAX_RETRIES` times.
    """
    if config.api is not None:
        return embed_by_api(pool_files, config, config.api, folder, cluster, progress)
    total = sum(pq.read_metadata(file).num_rows for file in pool_files)
    actors = cluster.count(config.workers, len(pool_files))
    items = [{"source": file, "target": str(folder / Path(file).name)} for file in pool_files]
    gpus = cluster.gpus_per_worker(config.workers)
    done, dimension = 0, 0
    for batch in map_on_actors(items, EmbedPartition, {"config": config}, "embed", config.workers, actors, cluster, gpus=gpus):
        if batch["failure"][0]:
            raise InputError(str(batch["failure"][0]))
        done += int(batch["rows"][0])
        dimension = int(batch["dimension"][0])
        progress.advance(done, total, "rows")
    return {"rows": done, "dimension": dimension, "actors": actors}


class EmbedPartition:
    """An actor that loads the encoder for its first partition and embeds one partition per call."""

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config
        self._encoder = cache(lambda: load_encoder(config))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed the partition named in the batch of one unless that is done; `failure` is an error that the user must fix."""
        source, target = str(batch["source"][0]), Path(str(batch["target"][0]))
        try:
            encoder = self._encoder()
            embed_file(source, target, encoder, self._config.text)
        except InputError as error:
            return {"rows": np.array([0]), "dimension": np.array([0]), "failure": np.array([str(error)])}
        rows = pq.read_metadata(target).num_rows
        return {"rows": np.array([rows]), "dimension": np.array([encoder.dimension]), "failure": np.array([""])}
