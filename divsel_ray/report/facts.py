"""A finished run folder as plain typed values. The amount of data read grows with the budget, not with the pool.

The exceptions are the histogram of quality, for which at most `SAMPLE` evenly spaced pool rows are kept, and the
silhouette, for which at most `apart.ROWS` vectors are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.config import Config
from divsel_ray.config.files import build_config
from divsel_ray.report.apart import measure_silhouette
from divsel_ray.report.records import Mean, StageRecord, known, mean_of, read_stages
from divsel_ray.report.rounds import Round, Training, read_gap, read_rounds, read_training
from divsel_ray.stage_names import round_name
from divsel_ray.store import RUN_MANIFEST, read_json
from divsel_ray.usage import Usage, usage_of

SAMPLE = 20_000


@dataclass(frozen=True)
class Pool:
    """Row counts of the input and the pool: `sampled_from` counts the distinct good rows, `rows` those in the pool."""

    rows: int
    rows_read: int
    bad_rows: int
    bad_reasons: Mapping[str, int]
    duplicates: int
    sampled_from: int


@dataclass(frozen=True)
class ClusterFacts:
    """A cluster, the number of rows selected from it, and their mean quality."""

    number: int
    size: int
    selected: int
    quality: float | None


@dataclass(frozen=True)
class Clustering:
    """The clusters, largest first, the outcome of the fit, and the separation (see `apart.measure_silhouette`)."""

    clusters: Sequence[ClusterFacts]
    iterations: int
    inertia: float
    warnings: Sequence[str]
    silhouette: float | None = None


@dataclass(frozen=True)
class Quality:
    """Qualities of evenly spaced scored rows (at most `SAMPLE`) and of all selected rows.

    `missing` of the `scored` rows (the pool's, or those drawn by `quality.oversample`) have no quality.
    """

    pool: Sequence[float]
    selected: Sequence[float]
    missing: int
    scored: int


@dataclass(frozen=True)
class Compared:
    """One measure of diversity for the selection, with mean and 95 % interval for random subsets of its size."""

    name: str
    value: float | None
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Diversity:
    """Diversity of the selection compared with `draws` random subsets, and the share of its rows from each source."""

    measures: Sequence[Compared]
    draws: int
    sources: Mapping[str, float]


@dataclass(frozen=True)
class StandIn:
    """The reward model fitted on the pool: share of held-out pairs ordered correctly, overall and by kind."""

    accuracy: float
    by_kind: Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """Duration and resource usage of a stage; `cached` if the last command reused it from an earlier one."""

    stage: str
    seconds: float
    cached: bool
    usage: Usage | None = None


@dataclass(frozen=True)
class Run:
    """All contents of the report except the texts of rows.

    `cleaned` counts the rows removed by each step of cleaning; `base_gap` and `base_reward` are those of the untuned model on
    held-out rows; `control` is the training on a static selection, if configured.
    """

    rows: int
    row_ids_sha256: str
    inputs: Sequence[str]
    finished: datetime
    execution: Mapping[str, Any]
    config: Config
    pool: Pool
    clustering: Clustering
    quality: Quality | None
    stand_in: StandIn | None
    base_gap: Mean | None
    diversity: Diversity | None
    rounds: Sequence[Round]
    timings: Sequence[Timing]
    cleaned: Mapping[str, int]
    base_reward: Mean | None
    control: Training | None


def read_run(folder: str | Path) -> Run:
    """Read the facts of a finished run.

    Raises:
        InputError: the folder contains no finished run, or files of it are missing.
    """
    manifest, stages = read_stages(folder)
    selection = read_selection(folder, ["row_id", "cluster", "quality"])
    config = build_config(manifest["config"], str(Path(folder) / RUN_MANIFEST))
    control, base = round_name(None, "train"), stages.get(round_name(0, "score"))
    return Run(
        rows=manifest["rows"],
        row_ids_sha256=manifest["row_ids_sha256"],
        inputs=manifest["inputs"],
        finished=datetime.fromisoformat(manifest["finished"]),
        execution=manifest["execution"],
        config=config,
        pool=Pool(**{name: stages["pool"].facts[name] for name in Pool.__dataclass_fields__}),
        clustering=_clustering(stages["cluster"], selection, _silhouette(stages, config)),
        quality=_quality(stages["quality"], selection) if "quality" in stages else None,
        stand_in=_stand_in(stages["reward"]) if "reward" in stages else None,
        base_gap=read_gap(base, held_out=True) if base else None,
        diversity=_diversity(stages["diversity"]) if "diversity" in stages else None,
        rounds=read_rounds(stages, config),
        timings=[_timing(name, stage) for name, stage in stages.items()],
        cleaned=_cleaned(stages),
        base_reward=read_gap(base, held_out=True, column="generated") if base else None,
        control=read_training(stages[control]) if control in stages else None,
    )


def read_selection(folder: str | Path, columns: list[str]) -> pa.Table:
    """Read columns of the selected rows, in row id order.

    Raises:
        InputError: `selection.parquet` is missing.
    """
    return pq.read_table(StageRecord(Path(folder), {}, 0.0, False).file("selection.parquet"), columns=columns)


def _timing(name: str, stage: StageRecord) -> Timing:
    used = usage_of(stage.facts)
    return Timing(name, used.wall_s if used else stage.seconds, stage.cached, used)


def _cleaned(stages: Mapping[str, StageRecord]) -> dict[str, int]:
    removed = dict(stages["clean"].facts["removed"]) if "clean" in stages else {}
    if "semantic" in stages:
        removed["semantic_duplicate"] = stages["semantic"].facts["removed"]
    return removed


def _silhouette(stages: Mapping[str, StageRecord], config: Config) -> float | None:
    if "embed" not in stages or config.cluster.metric != "euclidean":
        return None
    cluster = stages["cluster"]
    return measure_silhouette(stages["embed"].folder, cluster.folder, cluster.facts["sizes"])


def _clustering(stage: StageRecord, selection: pa.Table, silhouette: float | None) -> Clustering:
    sizes: list[int] = stage.facts["sizes"]
    of_row = selection["cluster"].to_pylist()
    counts, qualities = Counter(of_row), dict[int, list[float | None]]()
    for cluster, quality in zip(of_row, selection["quality"].to_pylist(), strict=True):
        qualities.setdefault(cluster, []).append(quality)
    means = {cluster: mean_of(values) for cluster, values in qualities.items()}
    clusters = [
        ClusterFacts(number, size, counts[number], mean.value if (mean := means.get(number)) else None)
        for number, size in enumerate(sizes)
    ]
    ordered = sorted(clusters, key=lambda cluster: (-cluster.size, cluster.number))
    facts = stage.facts
    return Clustering(ordered, facts["iterations"], facts["inertia"], facts.get("warnings", []), silhouette)


def _quality(stage: StageRecord, selection: pa.Table) -> Quality:
    files = sorted(stage.folder.glob("*.parquet"))
    total = sum(pq.read_metadata(file).num_rows for file in files)
    stride, seen = max(1, math.ceil(total / SAMPLE)), 0
    sampled: list[float] = []
    for file in files:
        values = pq.read_table(file, columns=["quality"])["quality"].to_numpy()
        sampled += known(values[-seen % stride :: stride].tolist())
        seen += len(values)
    return Quality(sampled, known(selection["quality"].to_pylist()), stage.facts["missing"], total)


def _diversity(stage: StageRecord) -> Diversity:
    found = read_json(stage.file("diversity.json"))
    own, random = found["selection"], found["random"]
    measures = [Compared(name, own[name], *(random[name][key] for key in ("mean", "low", "high"))) for name in found["compared"]]
    return Diversity(measures, found["draws"], own["sources"])


def _stand_in(stage: StageRecord) -> StandIn:
    return StandIn(stage.facts["held_out_accuracy"], stage.facts["accuracy_by_kind"])
