"""Shared inputs of all cells: the arena's own pool, the evaluation rows, and the stages that no contender changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divsel_ray.arena.pool import (
    EVALUATION,
    LABELS,
    MARKS,
    ROWS,
    SplitPlan,
    count_labels,
    split_part,
    write_evaluation,
    write_labels,
)
from divsel_ray.arena.spending import spent_by
from divsel_ray.arena.worker import Measurement
from divsel_ray.config import Config, PoolConfig
from divsel_ray.config.arena import Arena
from divsel_ray.data.inputs import source_names
from divsel_ray.errors import InputError
from divsel_ray.generate.stage import read_chat_template
from divsel_ray.models.references import fingerprint
from divsel_ray.needs import Known, check_cluster
from divsel_ray.progress import Progress, Silent
from divsel_ray.resources import Cluster
from divsel_ray.stage_maker import StageMaker
from divsel_ray.stages import Job, Sources
from divsel_ray.store import Stage, Store, digest
from divsel_ray.tasks import run_tasks


@dataclass(frozen=True)
class Ground:
    """Inputs shared by the cells of one seed.

    Attributes:
        budget: rows or tokens drawn by each contender.
        sources: inputs of the draws.
        reward: the fitted reward model, if any.
        rows: the stage of the arena's pool.
        identity: everything that a measurement depends on, other than the trained model.
        preparation: CPU and GPU seconds of the stages before a draw, by stage.
    """

    budget: int
    sources: Sources
    reward: Stage | None
    rows: Stage
    identity: Sequence[str]
    preparation: dict[str, dict[str, float]]

    @property
    def k(self) -> int:
        """Number of clusters."""
        return int(self.sources.clusters.facts["k"])


@dataclass
class Grounds:
    """Makes the inputs of cells, each stage once.

    Attributes:
        arena: settings and job.
        store: the arena's folder.
        cluster: resources of the Ray cluster.
        progress: receives progress reports.
    """

    arena: Arena
    store: Store
    cluster: Cluster
    progress: Progress
    _made: dict[int, Ground] = field(default_factory=dict)

    def of_seed(self, seed: int) -> Ground:
        """Inputs of the cells of a seed.

        Raises:
            InputError: the data does not fit the configuration.
        """
        if seed not in self._made:
            self._made[seed] = self._make(seed)
        return self._made[seed]

    def measurement(self) -> Measurement:
        """Settings for measuring cells."""
        return self._measured_on(self.of_seed(self.arena.settings.seeds[0]).rows)

    def _measured_on(self, rows: Stage) -> Measurement:
        batch_tokens = self.arena.settings.evaluation.batch_tokens
        return Measurement(str(rows.folder / EVALUATION), batch_tokens, read_chat_template(self.arena.refine.generate))

    def rows(self) -> Stage:
        """Make the arena's pool: rows to draw from, evaluation rows, and the labels and faults of each row."""
        raw = self._job(self.arena.job)
        pool, settings = raw.pool(), self.arena.settings
        given = self._given_rows()
        identity = {
            **settings.evaluation.model_dump(exclude={"rows", "batch_tokens"}),
            "spoil": settings.spoil.model_dump() if settings.spoil else None,
            "seed": self.arena.job.seed,
            "score": self.arena.job.pool.score_column is not None,
        }
        return raw.make(
            "arena/rows",
            identity,
            [pool.key, *([given[1].key] if given else [])],
            lambda folder: self._split(raw, pool, given, folder),
            lambda facts: (
                f"{facts['rows']:,} rows to draw from, {sum(facts['faults'].values()):,} of them spoiled, "
                f"{facts['evaluation']:,} evaluation rows"
            ),
        )

    def job_of_pool(self, rows: Stage) -> Config:
        """Configuration of the arena's job on the pool written by the arena."""
        job = self.arena.job
        column, kind = job.pool.score_column, job.quality.source.partition(":")[0]
        pool = PoolConfig(
            data=[str(rows.folder / ROWS)],
            format="messages",
            max_chars=job.pool.max_chars,
            score_column="score" if column else None,
            tokenizer=job.pool.tokenizer,
            partition_bytes=job.pool.partition_bytes,
        )
        quality = job.quality.model_copy(update={"source": "column:score"}) if kind == "column" else job.quality
        return job.model_copy(update={"pool": pool, "quality": quality})

    def _job(self, config: Config, progress: Progress | None = None) -> Job:
        return Job(config, self.store, progress or self.progress, self.cluster)

    def _given_rows(self) -> tuple[Job, Stage] | None:
        """The evaluation rows as a separate pool, if they are given as files."""
        evaluation = self.arena.settings.evaluation
        if not evaluation.rows:
            return None
        changes = {"data": evaluation.rows, "sample": evaluation.max_rows, "score_column": None}
        pool = self.arena.job.pool.model_copy(update=changes)
        job = self._job(self.arena.job.model_copy(update={"pool": pool}))
        return job, job.pool()

    def _split(self, raw: Job, pool: Stage, given: tuple[Job, Stage] | None, folder: Path) -> dict[str, Any]:
        evaluation, seed = self.arena.settings.evaluation, self.arena.job.seed
        labels = self._labels(raw, folder / LABELS)
        if given is None:
            wanted = min(evaluation.max_rows, max(2, round(evaluation.share * pool.facts["rows"])))
            call = (pool.files(), wanted, seed, labels, str(folder / EVALUATION))
        else:
            of_given = self._labels(given[0], folder / f"{LABELS}-evaluation")
            call = (given[1].files(), evaluation.max_rows, seed, of_given, str(folder / EVALUATION))
        [measured] = run_tasks(write_evaluation, [call], Silent(), "files")
        with_score = self.arena.job.pool.score_column is not None
        plan = SplitPlan(seed, str(folder / EVALUATION), labels, self.arena.settings.spoil, with_score)
        parts = run_tasks(split_part, [(file, plan, str(folder)) for file in pool.files()], self.progress, "files")
        [different] = run_tasks(count_labels, [(sorted(map(str, (folder / MARKS).iterdir())),)], Silent(), "files")
        return {**_summed(parts), "evaluation": measured, "labels": different}

    def _labels(self, job: StageMaker, folder: Path) -> dict[str, str]:
        """Write label files and return them by source; none without a label column.

        Raises:
            InputError: no row has the column.
        """
        column = self.arena.settings.evaluation.label
        if column is None:
            return {}
        names = source_names(job.inputs)
        targets = [str(folder / f"{at:05d}.parquet") for at in range(len(names))]
        calls = [(file, column, target) for file, target in zip(job.inputs, targets, strict=True)]
        if not sum(run_tasks(write_labels, calls, Silent(), "files")):
            raise InputError(f"evaluation.label {column}: not in any row of {', '.join(names[:3])}; name a column of the input")
        return dict(zip(names, targets, strict=True))

    def _make(self, seed: int) -> Ground:
        rows = self.rows() if not self._made else next(iter(self._made.values())).rows
        config = self.job_of_pool(rows)
        # Stages already reported for another seed are not reported again.
        job = self._job(self.arena.without_rounds(config), Silent() if self._made else None)
        records = job.pool()
        pool = job.clean(records)
        budget = job.budget(pool)
        embeddings = job.embeddings(pool, records)
        known = Known(embeddings.facts["rows"], embeddings.facts["dimension"])
        check_cluster(config, job.hardware, known, rounds=bool(self.arena.settings.iterative))
        anew = self.arena.settings.clusters == "per_seed"
        clusters = (self._job(config.model_copy(update={"seed": seed})) if anew else job).clusters(embeddings)
        reward = job.reward(pool)
        quality = job.quality(pool, reward, clusters)
        sources = Sources(pool, embeddings, clusters, quality, job.semantic(embeddings, clusters, quality))
        made = {"embed": embeddings, "cluster": clusters, "reward": reward, "quality": quality}
        spent = {name: spent_by([stage], config, self.cluster) for name, stage in made.items() if stage is not None}
        return Ground(budget, sources, reward, rows, self._identity(rows), spent)

    def _identity(self, rows: Stage) -> list[str]:
        train, measured = self.arena.refine.train, self._measured_on(rows)
        settings = [train.max_tokens, train.dtype, measured.batch_tokens, measured.chat_template]
        return [rows.key, fingerprint(train.model), digest(settings)]


def marks_of(rows: Stage) -> list[str]:
    """Files with the labels and faults of the pool's rows."""
    return rows.files(f"{MARKS}/*.parquet")


def _summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    faults = sum((Counter(part["faults"]) for part in parts), Counter[str]())
    return {**{name: sum(part[name] for part in parts) for name in ("rows", "removed")}, "faults": dict(faults)}
