"""What each stage of a job depends on, and the call that makes it.

A stage's key is known before it runs, because it hashes settings and the keys of its inputs; `Job(dry=True)` therefore
lists every stage, and which of them are committed already, without doing any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pydantic import BaseModel

from divsel_ray.cluster.stage import build_clusters
from divsel_ray.config import Config, RefineConfig, RewardConfig
from divsel_ray.data.inputs import find_inputs, fingerprint_inputs
from divsel_ray.data.stage import build_pool, take_rows
from divsel_ray.embed.stage import embed_pool
from divsel_ray.generate.stage import Fleet
from divsel_ray.models.references import fingerprint, resolve_model, unconverted
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster
from divsel_ray.score.gaps import pair_exchanges, write_gaps
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import build_reward, reward_reference, score_exchanges, score_pool
from divsel_ray.select.stage import DrawPlan, draw_round
from divsel_ray.select.weights import cluster_gaps, explain_weights, update_weights
from divsel_ray.store import Stage, Store, atomic_path, write_json
from divsel_ray.train.stage import Round, adapter_folder, train_round

VERSIONS = {
    "pool": 1,
    "embed": 1,
    "cluster": 2,
    "reward": 1,
    "quality": 1,
    "draw": 1,
    "train": 1,
    "generate": 1,
    "score": 1,
    "weights": 1,
}
"""Raised by whoever changes what a stage writes."""


@dataclass
class Job:
    """One job's stages; each method makes its stage, or finds it committed.

    Attributes:
        config: the whole configuration.
        store: the run folder.
        progress: where the user is told.
        cluster: what there is to compute with; None only in a dry job.
        dry: list the stages without making any.
        stages: the stages seen so far, in order, with whether each was there already.
    """

    config: Config
    store: Store
    progress: Progress
    cluster: Cluster | None
    dry: bool = False
    stages: list[tuple[Stage, bool]] = field(default_factory=list)
    _fleet: Fleet | None = None

    def __post_init__(self) -> None:
        self.inputs = find_inputs(self.config.pool.data)

    @property
    def hardware(self) -> Cluster:
        """The cluster of a job that runs."""
        if self.cluster is None:
            raise RuntimeError("a dry job makes no stage")
        return self.cluster

    @property
    def refinement(self) -> RefineConfig:
        """The refinement settings of a job that has rounds."""
        if self.config.refine is None:
            raise RuntimeError("this job has no rounds")
        return self.config.refine

    def pool(self) -> Stage:
        """Clean rows, sorted by row id, in content-cut partitions."""
        config, tokenizer = self.config.pool, self.config.embed.model
        names = [path.name for path in self.inputs]
        return self._make(
            "pool",
            {**_settings(config, "data", "max_bad_rows"), "seed": self.config.seed, "files": names},
            [fingerprint_inputs(self.inputs), fingerprint(tokenizer)],
            lambda folder: build_pool(self.inputs, config, self.config.seed, tokenizer, folder, self.progress),
            lambda facts: (
                f"{facts['rows']:,} rows of {facts['rows_read']:,}, {facts['bad_rows']:,} bad, {facts['duplicates']:,} duplicates"
            ),
        )

    def embeddings(self, pool: Stage) -> Stage:
        """One unit vector per row."""
        config = self.config.embed
        return self._make(
            "embed",
            _settings(config),
            [pool.key, fingerprint(config.model)],
            lambda folder: embed_pool(pool.files(), config, folder, self.hardware, self.progress),
            lambda facts: f"{facts['rows']:,} rows in {facts['dimension']} dimensions",
        )

    def clusters(self, embeddings: Stage) -> Stage:
        """A cluster for every row."""
        config, seed = self.config.cluster, self.config.seed
        return self._make(
            "cluster",
            {**_settings(config, "n_shards", "mode"), "seed": seed},
            [embeddings.key],
            lambda folder: build_clusters(
                embeddings.files(), config.resolved(embeddings.facts["rows"]), seed, folder, self.hardware, self.progress
            ),
            lambda facts: f"{facts['k']} clusters after {facts['iterations']} iterations, inertia {facts['inertia']:.4g}",
        )

    def reward(self, pool: Stage) -> Stage | None:
        """The fitted stand-in reward model, if the configuration asks for one."""
        config = self.config.reward
        if config is None or config.fit is None:
            return None
        return self._make(
            "reward",
            {**config.fit.model_dump(), "seed": self.config.seed},
            [pool.key, fingerprint(config.fit.base)],
            lambda folder: build_reward(pool.files(), config, self.config.seed, folder, self.hardware, self.progress),
            lambda facts: f"stand-in reward model, held-out accuracy {facts['held_out_accuracy']:.2f}",
        )

    def quality(self, pool: Stage, reward: Stage | None) -> Stage | None:
        """A quality for every row, or None where rows are drawn alike."""
        config = self.config.quality
        if config.source == "none":
            return None
        if config.source == "reward":
            spec, inputs = self._reward_spec(reward)
        else:
            spec = ScorerSpec.of_quality(config)
            inputs = [] if spec.kind == "column" else [fingerprint(spec.model)]
        return self._make(
            "quality",
            {"source": config.source, "max_tokens": spec.max_tokens, "batch_tokens": spec.batch_tokens},
            [pool.key, *inputs],
            lambda folder: score_pool(pool.files(), spec, folder, self.hardware, config.workers, self.progress),
            lambda facts: f"{facts['rows']:,} rows, mean {facts['mean']:.3g}, {facts['missing']:,} missing",
        )

    def draw(self, number: int, size: int, pool: Stage, clusters: Stage, quality: Stage | None, before: Before | None) -> Stage:
        """The rows selected up to this round, with their text, and the held-out rows."""
        config, quality_files = self.config, quality.files() if quality else []
        held_out = config.refine.held_out if config.refine else 0
        initial = "equal" if config.refine and config.refine.weights.initial == "uniform" else config.select.allocation
        rule = config.select.model_copy(update={"allocation": initial})
        identity = {**rule.model_dump(), "seed": config.seed, "budget": config.budget, "size": size, "held_out": held_out}

        def build(folder: Path) -> dict[str, Any]:
            plan = DrawPlan(rule, config.seed, self.budget(pool), size, held_out)
            if before:
                facts = before.draw.facts
                plan = replace(plan, drawn=facts["drawn"], targets=facts["targets"], weights=before.weights.facts["weights"])
            facts = draw_round(clusters.files(), quality_files, clusters.facts["k"], plan, folder)
            for name in ("selected", "held_out"):
                ids = pq.read_table(folder / f"{name}.parquet")["row_id"].to_pylist()
                _write_table(take_rows(pool.files(), ids), folder / f"{name}_rows.parquet")
            return facts

        inputs = [clusters.key, *([quality.key] if quality else []), *([before.draw.key, before.weights.key] if before else [])]
        return self._make(
            _name(number, "draw"), identity, inputs, build, lambda facts: f"{facts['new']:,} new rows, {facts['rows']:,} in all"
        )

    def budget(self, pool: Stage) -> int:
        """Rows to select: the budget, or the whole pool where fewer are allowed."""
        return min(self.config.budget, pool.facts["rows"]) if self.config.allow_fewer else self.config.budget

    def train(self, number: int, draw: Stage, before: Before | None) -> Stage:
        """The base model fine-tuned on all rows selected so far."""
        config, seed = self.refinement.train, self.config.seed

        def build(folder: Path) -> dict[str, Any]:
            self._fetch_model()
            base_loss = before.model.facts["held_out_loss_base"] if before else None
            round_ = Round(draw.folder / "selected_rows.parquet", draw.folder / "held_out_rows.parquet", seed, base_loss)
            return train_round(round_, config, folder, self.hardware, self.progress)

        return self._make(
            _name(number, "train"),
            {**_settings(config), "seed": seed, "world_size": config.workers.count, "threads": config.workers.cpus},
            [draw.key, fingerprint(config.model)],
            build,
            lambda facts: (
                f"{facts['steps']} steps, held-out loss {facts['held_out_loss_base']:.3f} -> {facts['held_out_loss']:.3f}"
            ),
        )

    def generate(self, number: int, draw: Stage, trained: Stage | None) -> Stage:
        """Completions of the selected and the held-out prompts; by the base model for held-out ones only when untrained."""
        config = self.refinement.generate
        names = ["held_out", "selected"] if trained else ["held_out"]

        def build(folder: Path) -> dict[str, Any]:
            self._fetch_model()
            parts = [pq.read_table(draw.folder / f"{name}_rows.parquet", columns=["row_id", "messages"]) for name in names]
            prompts = folder / "prompts.parquet"
            _write_table(pa.concat_tables(parts).sort_by("row_id"), prompts)
            adapter = str(adapter_folder(trained.folder)) if trained else None
            return self._generate(prompts, adapter, folder)

        return self._make(
            _name(number, "generate"),
            {**_settings(config), "seed": self.config.seed, "threads": config.workers.cpus, "rows": names},
            [draw.key, *([trained.key] if trained else [])],
            build,
            lambda facts: f"{facts['rows']:,} completions, {facts['tokens']:,} tokens, {facts['truncated']:,} cut at the limit",
        )

    def _generate(self, prompts: Path, adapter: str | None, folder: Path) -> dict[str, Any]:
        """Use the fleet, and end it where the cluster cannot hold it beside what comes next."""
        refinement, scoring = self.refinement, self._reward_config.workers
        training = refinement.train.workers
        if self._fleet is None:
            rank = refinement.train.lora_rank
            self._fleet = Fleet(refinement.train.model, refinement.generate, rank, self.config.seed, self.hardware)
        facts = self._fleet.generate(prompts, adapter, folder, self.progress)
        others = [(training, training.count or 1), (scoring, scoring.count or 1)]
        if not self.hardware.holds_together((refinement.generate.workers, self._fleet.size), *others):
            self._fleet.close()
        return facts

    def _fetch_model(self) -> None:
        """Convert the language model, where it comes in a form that must be, before a stage that loads it waits for it."""
        reference = self.refinement.train.model
        if unconverted(reference):
            self.progress.note(f"converting {reference} once for this machine, about a minute; its own terms of use apply")
            ray.get(ray.remote(max_calls=1)(resolve_model).remote(reference))

    def close(self) -> None:
        """End the actors that outlive a stage."""
        if self._fleet is not None:
            self._fleet.close()

    def score(self, number: int, draw: Stage, generated: Stage, reward: Stage | None) -> Stage:
        """Rewards of gold and generated completions, and their gap (Yu et al. 2024, Eq. 4)."""
        spec, inputs = self._reward_spec(reward)
        config = self._reward_config

        def build(folder: Path) -> dict[str, Any]:
            pairs = pa.concat_tables([pq.read_table(file) for file in generated.files("shard-*.parquet")])
            _write_table(pair_exchanges(pairs), folder / "exchanges.parquet")
            scores = folder / "scores.parquet"
            score_exchanges(str(folder / "exchanges.parquet"), spec, scores, self.hardware, config.workers, self.progress)
            held_out = set(pq.read_table(draw.folder / "held_out.parquet")["row_id"].to_pylist())
            return write_gaps(pairs["row_id"].to_pylist(), held_out, scores, folder / "gaps.parquet")

        return self._make(
            _name(number, "score"),
            {"scorer": "reward", "max_tokens": spec.max_tokens, "batch_tokens": spec.batch_tokens},
            [generated.key, *inputs],
            build,
            lambda facts: ", ".join(
                f"gap {facts[name]:.3f} on {rows} rows"
                for name, rows in (("mean_gap", "selected"), ("held_out_gap", "held-out"))
                if facts[name] is not None
            ),
        )

    def weights(self, number: int, draw: Stage, clusters: Stage, scored: Stage) -> Stage:
        """The next round's cluster weights, every cluster explained."""
        config = self.refinement.weights

        def build(folder: Path) -> dict[str, Any]:
            selected = pq.read_table(draw.folder / "selected.parquet", columns=["row_id", "cluster"])
            of_row = dict(zip(selected["row_id"].to_pylist(), selected["cluster"].to_pylist(), strict=True))
            gaps = [row for row in pq.read_table(scored.folder / "gaps.parquet").to_pylist() if not row["held_out"]]
            values = np.array([np.nan if row["gap"] is None else row["gap"] for row in gaps])
            cluster = np.array([of_row[row["row_id"]] for row in gaps], dtype=np.int64)
            by_cluster = cluster_gaps(values, cluster, clusters.facts["k"], shrinkage=config.shrinkage)
            before = np.array(draw.facts["weights"])
            after = update_weights(before, by_cluster, config)
            write_json(folder / "weights.json", explain_weights(clusters.facts["sizes"], by_cluster, before, after))
            moved = float(np.abs(after - before).sum() / 2)
            return {"weights": after.tolist(), "moved": moved, "between": by_cluster.between, "direction": config.direction}

        return self._make(
            _name(number, "weights"),
            config.model_dump(),
            [draw.key, scored.key],
            build,
            lambda facts: f"{facts['moved']:.1%} of the weight moved",
        )

    @property
    def _reward_config(self) -> RewardConfig:
        if self.config.reward is None:
            raise RuntimeError("this job has no reward section")
        return self.config.reward

    def _reward_spec(self, reward: Stage | None) -> tuple[ScorerSpec, list[str]]:
        """The reward model as a scorer, and what identifies it."""
        config = self._reward_config
        model = reward_reference(config, reward.folder if reward else Path())
        return ScorerSpec.of_reward(config, model), [reward.key if reward else fingerprint(model)]

    def _make(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Sequence[str],
        build: Callable[[Path], dict[str, Any]],
        summary: Callable[[dict[str, Any]], str],
    ) -> Stage:
        stage = self.store.stage(name, VERSIONS[name.rpartition("/")[2]], config, inputs)
        cached = stage.committed
        self.stages.append((stage, cached))
        if self.dry:
            return stage
        if not cached:
            self.progress.start(name)
            stage.commit(build(stage.start()))
        self.progress.finish(name, summary(stage.facts), cached=cached)
        return stage


@dataclass(frozen=True)
class Before:
    """What a round needs of the last one."""

    draw: Stage
    model: Stage
    weights: Stage


def _name(number: int, stage: str) -> str:
    return f"round-{number}/{stage}"


def _settings(section: BaseModel, *left_out: str) -> dict[str, Any]:
    """A section without what cannot change the stage's output."""
    return section.model_dump(mode="json", exclude={"workers", *left_out})


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
