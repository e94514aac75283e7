"""A fleet of generation actors, started once to serve every round's trained model.

Prompts form fixed shards by row id; each shard is one generate call on a clean cache, and one file, written atomically. So
completions depend on the shard size, which is configured, and not on the size of the fleet or on kills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from divsel_ray.actors import answer_of, await_loaded, start_actor
from divsel_ray.config import GenerateConfig, Workers
from divsel_ray.errors import JobError
from divsel_ray.generate.engine import load_engine
from divsel_ray.generate.requests import complete_rows
from divsel_ray.models.loading import load_tokenizer
from divsel_ray.models.references import resolve_model
from divsel_ray.models.text import read_template
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.store import write_table

SHARD_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class EngineSettings:
    """Settings shared by all actors of a fleet.

    Attributes:
        model: base model: folder, Hugging Face id or package:NAME.
        config: engine, lengths, sampling, data type.
        lora_rank: largest rank of the adapters to be used; 0 if training saves whole models.
        seed: seed of the job.
        chat_template: template that replaces the model's own; None for its own.
        trust_remote_code: whether the model's own Python code may run.
    """

    model: str
    config: GenerateConfig
    lora_rank: int
    seed: int
    chat_template: str | None = None
    trust_remote_code: bool = False


def read_chat_template(config: GenerateConfig) -> str | None:
    """The text of the configured chat template; see `read_template`."""
    return read_template(config.chat_template, "refine.generate.chat_template")


def shard_files(prompts_file: Path, config: GenerateConfig, folder: Path) -> dict[int, Path]:
    """The shard files of a prompts file, existing or not, by their first row."""
    starts = range(0, pq.read_metadata(prompts_file).num_rows, config.shard_size)
    return {start: folder / f"shard-{number:05d}.parquet" for number, start in enumerate(starts)}


class Fleet:
    """Generation actors, started on first use and ended by `close`."""

    def __init__(self, settings: EngineSettings, cluster: Cluster) -> None:
        self._settings, self._config, self._cluster = settings, settings.config, cluster
        self._actors: list[Any] = []

    def generate(
        self,
        prompts_file: Path,
        trained: str | None,
        folder: Path,
        progress: Progress,
        finished: Callable[[Path], None] = lambda shard: None,
    ) -> dict[str, Any]:
        """Complete the prompts of a Parquet file (row_id, and messages, the last of which is the gold completion).

        Writes `shard-00000.parquet`, ... with the columns of `requests.SCHEMA`. Shards whose file exists are not
        generated again.

        Args:
            prompts_file: the prompts, in the order of their row ids.
            trained: folder of an adapter or of a whole model; None for the base model.
            folder: output folder of the shards.
            progress: receives the number of prompts done.
            finished: called with each shard's file once it exists.

        Returns:
            {"rows", "completions", "tokens", "stopped", "truncated", "errors"}.

        Raises:
            InputError: the model cannot be used.
            JobError: the actors cannot be scheduled, or an engine does not load, dies or hangs; names the shard.
        """
        targets = shard_files(prompts_file, self._config, folder)
        missing = {start: target for start, target in targets.items() if not target.exists()}
        for start in targets.keys() - missing.keys():
            finished(targets[start])
        if missing:
            self._start(self.planned(prompts_file))
        rows = pq.read_metadata(prompts_file).num_rows
        done = rows - sum(min(self._config.shard_size, rows - start) for start in missing)
        for target, count in self._complete(str(prompts_file), trained, missing):
            done += count
            progress.advance(done, rows, "prompts")
            finished(target)
        return _count(list(targets.values()))

    @property
    def workers(self) -> Workers:
        """Resources of each actor."""
        return self._config.workers

    @property
    def size(self) -> int:
        """Number of running actors."""
        return len(self._actors)

    def planned(self, prompts_file: Path) -> int:
        """Number of actors that will complete these prompts."""
        shards = len(shard_files(prompts_file, self._config, prompts_file.parent))
        return max(self.size, self._cluster.count(self.workers, shards))

    def close(self) -> None:
        """End the actors and free their memory."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _start(self, count: int) -> None:
        """Start actors up to this count, and wait until their engines are loaded."""
        workers, what = self.workers, f"engine {self._config.engine} with {self._settings.model}"
        gpus = self._cluster.gpus_per_worker(workers)
        new = [start_actor(GenerateActor, [self._settings], workers, gpus) for _ in range(count - self.size)]
        self._actors += new
        await_loaded(new, "refine.generate", workers, self._cluster, what)

    def _complete(self, prompts: str, trained: str | None, targets: dict[int, Path]) -> Iterator[tuple[Path, int]]:
        """Complete the shards; yields (file, number of prompts) of each as it is done."""
        waiting, idle = sorted(targets, reverse=True), list(self._actors)
        running: dict[Any, tuple[Any, Path]] = {}
        while waiting or running:
            while waiting and idle:
                start, actor = waiting.pop(), idle.pop()
                task = actor.complete.remote(prompts, start, trained, str(targets[start]))
                running[task] = (actor, targets[start])
            ready, _ = ray.wait(list(running), timeout=SHARD_TIMEOUT_S)
            if not ready:
                names = ", ".join(sorted(target.name for _, target in running.values()))
                raise JobError(f"refine.generate: {names}: not completed within {SHARD_TIMEOUT_S:.0f} s; lower shard_size")
            actor, target = running.pop(ready[0])
            yield target, answer_of(ready[0], f"refine.generate: {target.name}")
            idle.append(actor)


class GenerateActor:
    """One engine with its model. A restarted actor loads it again on the first call."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine: Any = None
        self._tokenizer: Any = None

    def ready(self) -> bool:
        """Return once the actor has been scheduled."""
        return True

    def load(self) -> None:
        """Load the engine."""
        settings = self._settings
        folder, trusted = resolve_model(settings.model), settings.trust_remote_code
        self._tokenizer = load_tokenizer(folder, settings.chat_template, trust_remote_code=trusted)
        self._engine = load_engine(folder, settings.config, self._tokenizer, settings.lora_rank, trusted=trusted)

    def complete(self, prompts_file: str, start: int, trained: str | None, target: str) -> int:
        """Generate for one shard and write its file; returns its number of prompts."""
        if self._engine is None:
            self.load()
        config = self._settings.config
        table = pq.read_table(prompts_file, columns=["row_id", "messages"])
        rows = table.slice(start, config.shard_size).to_pylist()
        shard = complete_rows(rows, self._tokenizer, self._engine, config, self._settings.seed, trained)
        write_table(target, shard)
        return len(rows)


def _count(files: list[Path]) -> dict[str, Any]:
    table = pa.concat_tables([pq.read_table(file, columns=["row_id", "tokens", "finish_reason"]) for file in files])
    reasons = table["finish_reason"].to_pylist()
    return {
        "rows": pc.count_distinct(table["row_id"]).as_py(),
        "completions": len(reasons),
        "tokens": sum(table["tokens"].to_pylist()),
        "stopped": reasons.count("stop"),
        "truncated": reasons.count("length"),
        "errors": reasons.count("error"),
    }
