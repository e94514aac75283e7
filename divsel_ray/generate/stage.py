"""A fleet of generation actors: started once, it serves every round's adapter.

Prompts form fixed shards by row id; one shard is one generate call on a clean cache and one file, written whole. So the
completions depend on the shard size, which the configuration sets, and not on the size of the fleet or on kills.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from divsel_ray.config import GenerateConfig
from divsel_ray.generate.engine import Completion, load_engine
from divsel_ray.models.references import resolve_model
from divsel_ray.models.text import cut_completion, encode_prompt
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import atomic_path

START_TIMEOUT_S = 900.0
SHARD_TIMEOUT_S = 3600.0


class Fleet:
    """Generation actors, started when first needed and ended by `close`."""

    def __init__(self, model: str, config: GenerateConfig, lora_rank: int, seed: int, cluster: Cluster) -> None:
        self._arguments = (model, config, lora_rank, seed)
        self._cluster = cluster
        self._actors: list[Any] = []

    def generate(self, prompts_file: Path, adapter: str | None, folder: Path, progress: Progress) -> dict[str, Any]:
        """Complete the prompts of a Parquet file (row_id, messages whose last one is the gold completion).

        Writes `shard-00000.parquet`, ... with row_id, prompt_messages, gold, generated (gold and generated cut to the
        same `max_new_tokens`), tokens, finish_reason. Shards whose file exists are not generated again.

        Returns:
            {"rows", "tokens", "stopped", "truncated", "errors"}.
        """
        config: GenerateConfig = self._arguments[1]
        rows = pq.read_metadata(prompts_file).num_rows
        starts = list(range(0, rows, config.shard_size))
        targets = {start: folder / f"shard-{number:05d}.parquet" for number, start in enumerate(starts)}
        missing = [start for start in starts if not targets[start].exists()]
        if missing:
            self._ensure_started(len(starts))
        self._run(str(prompts_file), adapter, {start: targets[start] for start in missing}, rows, progress)
        return _count([targets[start] for start in starts])

    @property
    def size(self) -> int:
        """Actors running."""
        return len(self._actors)

    def close(self) -> None:
        """End the actors and free what they hold."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _ensure_started(self, shards: int) -> None:
        if self._actors:
            return
        config: GenerateConfig = self._arguments[1]
        options = {
            "num_cpus": config.workers.cpus,
            "num_gpus": self._cluster.gpus_per_worker(config.workers),
            "max_restarts": 2,
            "max_task_retries": 2,
        }
        count = self._cluster.count(config.workers, shards)
        self._actors = [ray.remote(GenerateActor).options(**options).remote(*self._arguments) for _ in range(count)]
        ray.get([actor.ready.remote() for actor in self._actors], timeout=START_TIMEOUT_S)

    def _run(self, prompts: str, adapter: str | None, targets: dict[int, Path], rows: int, progress: Progress) -> None:
        waiting = sorted(targets.items(), reverse=True)
        idle, done = list(self._actors), 0
        running: dict[Any, Any] = {}
        while waiting or running:
            while waiting and idle:
                (start, target), actor = waiting.pop(), idle.pop()
                running[actor.complete.remote(prompts, start, adapter, str(target))] = actor
            ready, _ = ray.wait(list(running), timeout=SHARD_TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"no shard of prompts was completed in {SHARD_TIMEOUT_S:.0f} s")
            done += ray.get(ready[0])
            idle.append(running.pop(ready[0]))
            progress.advance(done, rows, "completions")


class GenerateActor:
    """One engine with its model."""

    def __init__(self, model: str, config: GenerateConfig, lora_rank: int, seed: int) -> None:
        from transformers import AutoTokenizer

        folder = resolve_model(model)
        self._config, self._seed = config, seed
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._engine = load_engine(folder, config, self._tokenizer, lora_rank)

    def ready(self) -> bool:
        """Answers once the model is loaded."""
        return True

    def complete(self, prompts_file: str, start: int, adapter: str | None, target: str) -> int:
        """Generate for one shard and write its file; returns its rows."""
        table = pq.read_table(prompts_file, columns=["row_id", "messages"]).sort_by("row_id")
        rows = table.slice(start, self._config.shard_size).to_pylist()
        prompts = [encode_prompt(self._tokenizer, row["messages"][:-1], self._config.max_prompt_tokens) for row in rows]
        completions = self._engine.generate(prompts, [_seed(self._seed, row["row_id"]) for row in rows], adapter)
        with atomic_path(target) as path:
            pq.write_table(self._table(rows, completions), path)
        return len(rows)

    def _table(self, rows: list[dict[str, Any]], completions: list[Completion]) -> pa.Table:
        def cut(text: str) -> str:
            return cut_completion(self._tokenizer, text.strip(), self._config.max_new_tokens)

        return pa.table(
            {
                "row_id": [row["row_id"] for row in rows],
                "prompt_messages": [row["messages"][:-1] for row in rows],
                "gold": [cut(row["messages"][-1]["content"]) for row in rows],
                "generated": [cut(completion.text) for completion in completions],
                "tokens": [completion.tokens for completion in completions],
                "finish_reason": [completion.finish_reason for completion in completions],
            }
        )


def _seed(seed: int, row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:generate:{row_id}".encode(), digest_size=4).digest(), "big")


def _count(files: list[Path]) -> dict[str, Any]:
    table = pa.concat_tables([pq.read_table(file, columns=["tokens", "finish_reason"]) for file in files])
    reasons = table["finish_reason"].to_pylist()
    return {
        "rows": len(reasons),
        "tokens": sum(table["tokens"].to_pylist()),
        "stopped": reasons.count("stop"),
        "truncated": reasons.count("length"),
        "errors": len(reasons) - reasons.count("stop") - reasons.count("length"),
    }
