"""A server's embeddings on Ray: one actor sends all requests, so that request and spending limits hold for the stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from divsel_ray.actors import answer_of, start_actor
from divsel_ray.config import EmbedApiConfig, EmbedConfig
from divsel_ray.embed.api import SECTION, ApiEncoder, cost_of
from divsel_ray.embed.files import embed_file
from divsel_ray.errors import InputError
from divsel_ray.models.api_client import find_key
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster, await_ready
from divsel_ray.store import write_text

REFUSED = "refused.jsonl"
"""File next to the vectors, if needed: the rows without a vector, as the server refuses their texts."""
_ANSWERS = "answers"


def embed_by_api(
    pool_files: list[str], config: EmbedConfig, api: EmbedApiConfig, folder: Path, cluster: Cluster, progress: Progress
) -> dict[str, Any]:
    """As `embed_pool`, after announcing the estimated cost. Answers are kept in a folder until all partitions are done.

    Returns:
        {"rows", "dimension", "actors", "requests", "tokens", "refused", "cost"}; rows with a text that the server refuses are
        left out, and listed with the server's reason in `refused.jsonl`.

    Raises:
        InputError: the key is missing or refused, the server has no such model, or the estimate exceeds the limit.
        JobError: the spending limit is reached, or the server refuses every text or no longer responds.
    """
    # Checked here too, not only on a worker, so that a missing key is reported before anything starts.
    find_key(api, SECTION)
    sizes = {file: pq.read_metadata(file).num_rows for file in pool_files}
    tokens = sum(_tokens_of(file, config.max_tokens) for file in pool_files)
    progress.note(_announced(api, sum(sizes.values()), tokens))
    if api.max_cost is not None and cost_of(api, tokens) > api.max_cost:
        raise InputError(
            f"{SECTION}: about {tokens:,} tokens would cost about {cost_of(api, tokens):,.4g}, above max_cost {api.max_cost:g}; "
            "raise it, lower embed.max_tokens, or sample the pool (pool.sample)"
        )
    workers, done, dimension = config.workers.model_copy(update={"count": 1, "gpus": 0.0}), 0, 0
    actor = start_actor(_Asker, [config, api, str(folder / _ANSWERS)], workers, 0)
    try:
        await_ready([actor.ready.remote()], "embed", workers, cluster.placement_timeout_s)
        # Empty partitions come last: the length of their vectors is known by then.
        for file in sorted(pool_files, key=lambda file: (not sizes[file], file)):
            target = folder / Path(file).name
            dimension = answer_of(actor.embed.remote(file, str(target), dimension), SECTION)
            done += sizes[file]
            progress.advance(done, sum(sizes.values()), "rows")
        spent, refused = answer_of(actor.spent.remote(), SECTION), answer_of(actor.refused.remote(), SECTION)
    finally:
        ray.kill(actor)
    if refused:
        lines = [json.dumps({"row_id": row_id, "reason": refused[row_id]}) for row_id in sorted(refused)]
        write_text(folder / REFUSED, "\n".join([*lines, ""]))
        progress.note(f"{len(refused):,} rows are left out: the server refuses their texts; reasons: {folder / REFUSED}")
    shutil.rmtree(folder / _ANSWERS, ignore_errors=True)
    counts = {"rows": done - len(refused), "dimension": dimension, "actors": 1, "refused": len(refused)}
    return {**counts, **spent, "cost": cost_of(api, spent["tokens"])}


def _tokens_of(file: str, most: int) -> int:
    """Estimate the tokens to send for a partition, assuming that the pool's tokenizer counts as the server's does.

    For files without token counts it is the largest possible number.
    """
    if "n_tokens" not in pq.read_schema(file).names:
        return int(pq.read_metadata(file).num_rows) * most
    counts = pq.read_table(file, columns=["n_tokens"])["n_tokens"]
    return int(pc.sum(pc.min_element_wise(counts, most)).as_py() or 0)


def _announced(api: EmbedApiConfig, rows: int, tokens: int) -> str:
    priced = f"estimated cost {cost_of(api, tokens):,.4g}" if api.price else "no price is set"
    limit = "" if api.max_cost is None else f", the limit is {api.max_cost:g}"
    return f"{api.model} at {api.url}: {rows:,} rows to embed, about {tokens:,} tokens, {priced}{limit}"


class _Asker:
    """An actor with one encoder for all partitions; after a restart it reuses the saved answers."""

    def __init__(self, config: EmbedConfig, api: EmbedApiConfig, answers: str) -> None:
        self._config, self._api, self._answers = config, api, Path(answers)
        self._encoder: ApiEncoder | None = None

    def ready(self) -> bool:
        """Return once the actor has its resources."""
        return True

    def embed(self, source: str, target: str, dimension: int) -> int:
        """Embed a partition unless that is done; returns the length of its vectors, or `dimension` if it has no rows."""
        encoder = self._load()
        encoder.dimension = encoder.dimension or dimension
        embed_file(source, Path(target), encoder, self._config.text)
        return int(pq.read_schema(target).field("embedding").type.list_size)

    def spent(self) -> dict[str, int]:
        """Numbers of requests and tokens, over all attempts."""
        spent = self._load().answers.spent
        return {"requests": spent.requests, "tokens": spent.tokens}

    def refused(self) -> dict[str, str]:
        """Rows with a text that the server refuses, and the server's reason."""
        return self._load().answers.refused

    def _load(self) -> ApiEncoder:
        if self._encoder is None:
            self._encoder = ApiEncoder(self._config, self._api, self._answers)
        return self._encoder
