"""What each stage of a job depends on, and the call that builds it.

A stage's key is known before it runs, because it hashes settings and the keys of its inputs; `Job(dry=True)` therefore
lists every stage, and which of them are already committed, without running any.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel

from divsel_ray.cluster.stage import build_clusters
from divsel_ray.config import Config, RewardConfig, SelectConfig
from divsel_ray.data.clean_stage import benchmark_files, build_clean
from divsel_ray.data.inputs import fingerprint_inputs, named_files
from divsel_ray.data.stage import CHUNK_ROWS, build_pool, take_rows
from divsel_ray.embed.given import SETTING, take_vectors
from divsel_ray.embed.stage import embed_pool
from divsel_ray.errors import InputError
from divsel_ray.models.references import fingerprint
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import UNSCORED, build_reward, check_scores, draw_wanted, reward_reference, score_pool
from divsel_ray.select.diversity_stage import measure_selection
from divsel_ray.select.plan import DrawFiles, DrawPlan, rows_to_score
from divsel_ray.select.semantic_stage import drop_semantic_duplicates
from divsel_ray.select.stage import draw_round
from divsel_ray.stage_maker import StageMaker
from divsel_ray.stage_names import round_name
from divsel_ray.store import Stage, digest, file_digest, write_table

DRAW_MEMORY_SHARE = 0.5
"""Share of a node's memory that a draw may fill with vectors."""


@dataclass
class Job(StageMaker):
    """The stages of one job; each method builds its stage, or finds it committed."""

    def pool(self) -> Stage:
        """Clean rows, sorted by row id, in content-defined partitions."""
        config, tokenizer = self.config.pool, self.config.pool.tokenizer or self.config.embed.model
        names = [path.name for path in self.inputs]
        return self.make(
            "pool",
            {**settings_of(config, "data", "max_bad_rows", "tokenizer"), "seed": self.config.seed, "files": names},
            [fingerprint_inputs(self.inputs, "pool.data"), fingerprint(tokenizer)],
            lambda folder: build_pool(self.inputs, config, self.config.seed, tokenizer, folder, self.progress),
            lambda facts: (
                f"{facts['rows']:,} rows of {facts['rows_read']:,} ({_formats(facts)}), {facts['bad_rows']:,} bad, "
                f"{facts['duplicates']:,} duplicates"
            ),
        )

    def clean(self, pool: Stage) -> Stage:
        """The pool without the rows that the settings remove; the pool itself if they remove none."""
        config = self.config.clean
        if not (config.min_tokens or config.max_tokens or config.near_duplicates or config.benchmarks):
            return pool
        benchmarks = benchmark_files(config) if config.benchmarks else []
        return self.make(
            "clean",
            settings_of(config, "benchmarks", "semantic_duplicates"),
            [pool.key, fingerprint_inputs(benchmarks, "clean.benchmarks")],
            lambda folder: build_clean(pool.files(), config, folder, self.progress),
            lambda facts: f"{facts['rows']:,} rows, removed: {_counts(facts['removed'])}",
        )

    def embeddings(self, pool: Stage, records: Stage) -> Stage:
        """One unit vector per row. `records` is the pool as read."""
        config = self.config.embed
        if config.given is not None:
            return self._given(config.given, pool, records)
        return self.make(
            "embed",
            config.identity(),
            [pool.key, fingerprint(config.model)],
            lambda folder: embed_pool(pool.files(), config, folder, self.hardware, self.progress),
            lambda facts: f"{facts['rows']:,} rows in {facts['dimension']} dimensions",
        )

    def _given(self, given: str, pool: Stage, records: Stage) -> Stage:
        of_file = {} if self.dry else _rows_of_files(records)
        return self.make(
            "embed",
            self.config.embed.identity(),
            [pool.key, _digest_of(given, SETTING)],
            lambda folder: take_vectors(pool.files(), given, of_file, folder, self.progress),
            lambda facts: f"{facts['rows']:,} rows in {facts['dimension']} dimensions, from {facts['given']}",
        )

    def clusters(self, embeddings: Stage) -> Stage:
        """The cluster of every row."""
        config, seed = self.config.cluster, self.config.seed
        return self.make(
            "cluster",
            {**settings_of(config, "n_shards", "mode"), "seed": seed},
            [embeddings.key],
            lambda folder: build_clusters(
                embeddings.files(), config.resolved(embeddings.facts["rows"]), seed, folder, self.hardware, self.progress
            ),
            lambda facts: f"{facts['k']} clusters after {facts['iterations']} iterations, inertia {facts['inertia']:.4g}",
        )

    def reward(self, pool: Stage) -> Stage | None:
        """The fitted stand-in reward model, if the configuration requests one and something is scored by it."""
        config, refine = self.config.reward, self.config.refine
        if config is not None and config.perplexity is not None and refine is not None and refine.weights.direction == "lagging":
            self.progress.note(
                "reward.perplexity with direction lagging (Yu et al. 2024, Eq. 7) raises clusters whose gold completions "
                f"{config.perplexity} finds unlikely, such as corrupted rows; inspect the selection, or use a reward model"
            )
        if config is None or config.fit is None or not self.config.scores_by_reward:
            return None
        return self.make(
            "reward",
            {**config.fit.model_dump(), "seed": self.config.seed},
            [pool.key, fingerprint(config.fit.base)],
            lambda folder: build_reward(pool.files(), config, self.config.seed, folder, self.hardware, self.progress),
            lambda facts: f"stand-in reward model, held-out accuracy {facts['held_out_accuracy']:.2f}",
        )

    def quality(self, pool: Stage, reward: Stage | None, clusters: Stage) -> Stage | None:
        """The quality of every row, or of those that `oversample` draws; None if all rows are treated equally."""
        config, seed = self.config.quality, self.config.seed
        if config.source == "none":
            return None
        spec, inputs = self._quality_spec(reward)
        wanted = plan_draw(self.config, ceil((config.oversample or 0) * self.config.budget), before=None)
        sampled = {} if config.oversample is None else _identity_of_sample(wanted)

        def build(folder: Path) -> dict[str, Any]:
            """Score all rows, or those drawn for scoring."""
            if spec.kind == "given":
                check_scores(spec.model, _rows_of_files(next(stage for stage, _ in self.stages if stage.name == "pool")))
            ids = draw_wanted(clusters.files(), rows_to_score(clusters.facts["sizes"], wanted), seed, folder) if sampled else ""
            return score_pool(pool.files(), spec, folder, self.hardware, config.workers, self.progress, ids)

        return self.make(
            "quality",
            {"source": config.source, **spec.limits, **sampled},
            [pool.key, *inputs, *([clusters.key] if sampled else [])],
            build,
            lambda facts: f"{facts['rows']:,} rows, mean {facts['mean']:.3g}, {facts['missing']:,} missing",
        )

    def _quality_spec(self, reward: Stage | None) -> tuple[ScorerSpec, list[str]]:
        """The scorer of the pool's rows, and its identity."""
        config = self.config.quality
        if config.source == "reward":
            spec, inputs = self.reward_spec(reward)
            return spec.as_quality(), inputs
        spec = ScorerSpec.of_quality(config)
        return spec, [_digest_of(spec.model, "quality.source")] if spec.kind == "given" else spec.identity()

    def semantic(self, embeddings: Stage, clusters: Stage, quality: Stage | None) -> Stage | None:
        """Semantic duplicates, rows that repeat another row of their cluster; None if they may be drawn."""
        threshold = self.config.clean.semantic_duplicates
        if threshold is None:
            return None
        quality_files = quality.files() if quality else []
        return self.make(
            "semantic",
            {"threshold": threshold},
            [embeddings.key, clusters.key, *([quality.key] if quality else [])],
            lambda folder: drop_semantic_duplicates(
                clusters.files(), embeddings.files(), quality_files, clusters.facts["k"], threshold, folder, self.progress
            ),
            lambda facts: f"{facts['removed']:,} of {facts['rows']:,} rows are semantic duplicates",
        )

    def draw(self, number: int | None, size: int, sources: Sources, before: Before | None) -> Stage:
        """The rows selected up to this round, with their text, the held-out rows, and those of the probe if one exists.

        Raises:
            InputError: the pool does not contain enough rows.
        """
        config, lists = self.config, listed_files(self.config.select)
        plan = plan_draw(config, size, before)
        settings = settings_of(plan.config, "include", "exclude")
        budgets = [*sorted(config.nested), config.budget]
        identity = {**settings, "seed": config.seed, "budgets": budgets, "size": size, "unit": plan.unit}
        identity |= {"held_out": plan.held_out, "probe": plan.probe}
        # With the suffix: it decides how the list is read, and the copy is found by it.
        identity |= {name: _digest_of(str(path), f"select.{name}") + path.suffix for name, path in lists.items()}
        # Only if set, so that keys of existing draws stay unchanged.
        identity |= {"allow_fewer": True} if plan.allow_fewer else {}

        def build(folder: Path) -> dict[str, Any]:
            """Draw according to the plan, with copies of its lists."""
            # The lists are among the inputs needed to repeat the draw.
            copies = {name: shutil.copy(path, folder / f"{name}{path.suffix}") for name, path in lists.items()}
            memory = DRAW_MEMORY_SHARE * self.hardware.node_gib * 2**30
            facts = draw_round(sources.files, sources.clusters.facts["k"], with_lists(plan, copies), folder, memory)
            facts["asked"] = size
            if plan.probe and not facts["probe"]:
                raise InputError(
                    f"refine.scored probe: the pool has no rows left for it after the budget of {plan.reserved:,}; lower the "
                    "budget, or score the selected rows (refine.scored: selected)"
                )
            for name in ("selected", "held_out", *(["probe"] if plan.probe else [])):
                ids = pq.read_table(folder / f"{name}.parquet")["row_id"].to_pylist()
                rows = take_rows(sources.pool.files(), ids)
                write_table(folder / f"{name}_rows.parquet", rows, row_group_size=CHUNK_ROWS)
            return facts

        inputs = [*sources.keys, *([before.draw.key, before.weights.key] if before else [])]
        return self.make(
            round_name(number, "draw"),
            identity,
            inputs,
            build,
            lambda facts: f"{facts['new']:,} new rows, {facts['rows']:,} in total",
        )

    def diversity(self, drawn: Stage, sources: Sources) -> Stage | None:
        """Diversity of the selection compared with random subsets of its size; None if it is empty."""
        if not self.dry and not drawn.facts["rows"]:
            return None
        seed, selected = self.config.seed, drawn.folder / "selected.parquet"
        return self.make(
            "diversity",
            {"seed": seed},
            [drawn.key],
            lambda folder: measure_selection(sources.files, sources.clusters.facts["k"], selected, seed, folder),
            lambda facts: f"{facts['clusters_covered']:.0%} of the clusters, Vendi score {facts['vendi']:.3g}",
        )

    def budget(self, pool: Stage) -> int:
        """Rows or tokens to select: the budget, or the whole pool if it is smaller and fewer are allowed.

        Raises:
            InputError: the pool contains fewer, and that is not allowed.
        """
        if self.dry and not pool.committed:
            return self.config.budget
        held = pool.facts["rows" if self.config.budget_unit == "rows" else "tokens"]
        if held < self.config.budget and not self.config.allow_fewer:
            raise InputError(
                f"budget {self.config.budget} exceeds the pool's {held} {self.config.budget_unit}; lower it, or allow a smaller "
                "selection (--allow-fewer, allow_fewer: true)"
            )
        return int(min(self.config.budget, held))

    @property
    def reward_config(self) -> RewardConfig:
        """The reward settings of a job that uses a reward."""
        if self.config.reward is None:
            raise RuntimeError("this job has no reward section")
        return self.config.reward

    def reward_spec(self, reward: Stage | None) -> tuple[ScorerSpec, list[str]]:
        """The scorer of completions, and its identity: a model's content, or a judge's settings except limits."""
        config = self.reward_config
        spec = ScorerSpec.of_reward(config, reward_reference(config, reward.folder if reward else Path()))
        return spec, [reward.key] if reward else spec.identity()


@dataclass(frozen=True)
class Sources:
    """The inputs of a draw: the stages that describe every row."""

    pool: Stage
    embeddings: Stage
    clusters: Stage
    quality: Stage | None = None
    semantic: Stage | None = None

    @property
    def keys(self) -> list[str]:
        """Keys that identify the sources; pool and embeddings are part of the clusters' key."""
        return [stage.key for stage in (self.clusters, self.quality, self.semantic) if stage]

    @property
    def files(self) -> DrawFiles:
        """Files of the sources."""
        quality, semantic = (stage.files() if stage else [] for stage in (self.quality, self.semantic))
        unscored = self.quality.files(UNSCORED) if self.quality else []
        return DrawFiles(self.clusters.files(), quality, self.pool.files(), self.embeddings.files(), semantic, unscored)


@dataclass(frozen=True)
class Before:
    """What a round needs from the previous one."""

    draw: Stage
    model: Stage
    weights: Stage


def plan_draw(config: Config, size: int, before: Before | None) -> DrawPlan:
    """Plan of a round's draw: `size` new rows, or the whole budget of a static selection."""
    uniform = config.refine is not None and config.refine.weights.initial == "uniform"
    plan = DrawPlan(
        config.select.model_copy(update={"allocation": "equal", "weights": None} if uniform else {}),
        config.seed,
        [*sorted(config.nested), size],
        config.budget_unit,
        config.allow_fewer,
        held_out=config.refine.held_out if config.refine else 0,
        probe=config.refine.probe if config.refine and config.refine.scored == "probe" else 0,
        reserved=config.budget,
    )
    if before is None or not (before.draw.committed and before.weights.committed):
        return plan
    facts = before.draw.facts
    budgets, weights = [facts["rows"] + size], before.weights.facts["weights"]
    return replace(plan, budgets=budgets, drawn=facts["drawn"], targets=facts["targets"], weights=weights)


def _identity_of_sample(plan: DrawPlan) -> dict[str, Any]:
    """Settings that determine which rows are drawn for scoring, see `rows_to_score`."""
    shares = plan.config.model_dump(include={"allocation", "exponent", "weights"})
    return {"rows": plan.budgets[-1], "held_out": plan.held_out, "probe": plan.probe, **shares, "seed": plan.seed}


def listed_files(config: SelectConfig) -> dict[str, Path]:
    """The lists of row ids that the settings name."""
    return {name: Path(path).expanduser() for name in ("include", "exclude") if (path := getattr(config, name))}


def with_lists(plan: DrawPlan, copies: Mapping[str, Any]) -> DrawPlan:
    """The plan, with its lists of row ids replaced by these files."""
    return replace(plan, config=plan.config.model_copy(update={name: str(path) for name, path in copies.items()}))


def _rows_of_files(records: Stage) -> dict[str, int]:
    """Number of records in each input file, including bad ones."""
    return {name: facts["rows"] for name, facts in records.facts["files"].items()}


def _formats(facts: Mapping[str, Any]) -> str:
    return ", ".join(sorted({file["format"] for file in facts["files"].values()}))


def _counts(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {step.replace('_', ' ')}" for step, count in removed.items() if count) or "none"


def _digest_of(path: str, setting: str) -> str:
    """Digest of a file that the user named, or of the Parquet files of a folder; see `named_files`."""
    return digest([file_digest(file) for file in named_files(path, setting)])


def settings_of(section: BaseModel, *left_out: str) -> dict[str, Any]:
    """A section without the settings that cannot change the stage's output."""
    return section.model_dump(mode="json", exclude={"workers", *left_out})
