"""A finished run folder as plain typed values. What is read here is the size of the budget, never of the pool.

The one exception is the histogram of quality, for which at most `SAMPLE` evenly spaced pool rows are kept.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.config import Config
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.store import read_json

MANIFEST = "manifest.json"
SAMPLE = 20_000
_BOUND = 1e-6


@dataclass(frozen=True)
class Mean:
    """A mean over `count` rows, with its standard error (None below two rows)."""

    value: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class Pool:
    """What was read and what was left of it. `sampled_from` are the distinct good rows, `rows` the pool's."""

    rows: int
    rows_read: int
    bad_rows: int
    bad_reasons: Mapping[str, int]
    duplicates: int
    sampled_from: int


@dataclass(frozen=True)
class Training:
    """One round's fine-tuning; losses in nats per completion token, None where nothing was held out."""

    steps: int
    losses: Sequence[float]
    held_out_loss_base: float | None
    held_out_loss: float | None


@dataclass(frozen=True)
class Update:
    """How one round moved the cluster weights.

    Attributes:
        after: (k,) weights.
        moved: share of the weight that changed cluster.
        told_apart: False where gaps differed between clusters no more than chance makes them.
        at_step_limit: clusters whose weight was kept from moving further by `max_step`.
        at_floor: clusters held up by `floor`.
    """

    after: Sequence[float]
    moved: float
    told_apart: bool
    at_step_limit: int
    at_floor: int


@dataclass(frozen=True)
class Round:
    """One round: rows in all and new, the (k,) weights it drew by, and what came of them. Round 0 is the untuned model."""

    number: int
    rows: int
    new: int
    weights: Sequence[float]
    seconds: float
    training: Training | None
    gap: Mean | None
    held_out_gap: Mean | None
    update: Update | None


@dataclass(frozen=True)
class Cluster:
    """A cluster, what was selected from it, and the mean quality of that."""

    number: int
    size: int
    selected: int
    quality: float | None


@dataclass(frozen=True)
class Clustering:
    """The clusters, largest first, and how the fit ended."""

    clusters: Sequence[Cluster]
    iterations: int
    inertia: float
    warnings: Sequence[str]


@dataclass(frozen=True)
class Quality:
    """Qualities of evenly spaced pool rows (at most `SAMPLE`) and of all selected rows; `missing` counts the pool's."""

    pool: Sequence[float]
    selected: Sequence[float]
    missing: int


@dataclass(frozen=True)
class Compared:
    """One measure of diversity: of the selection, and the mean and 95 % interval of random subsets of its size."""

    name: str
    value: float | None
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Diversity:
    """How diverse the selection is, beside so many random subsets; and the share of its rows from each source."""

    measures: Sequence[Compared]
    draws: int
    sources: Mapping[str, float]


@dataclass(frozen=True)
class StandIn:
    """The reward model fitted on the pool: share of held-out pairs it ordered rightly, in all and by kind."""

    accuracy: float
    by_kind: Mapping[str, float]


@dataclass(frozen=True)
class Timing:
    """Seconds a stage took; `cached` where the last command found it made already."""

    stage: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Run:
    """Everything the report says, but for texts of rows."""

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


@dataclass(frozen=True)
class StageRecord:
    """A stage as the run's manifest lists it."""

    folder: Path
    facts: Mapping[str, Any]
    seconds: float
    cached: bool

    def file(self, name: str) -> Path:
        """One of the stage's files.

        Raises:
            InputError: it is gone.
        """
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path}: this file of the run is gone; run divsel run again with the same --out")
        return path


def read_stages(folder: str | Path) -> tuple[dict[str, Any], dict[str, StageRecord]]:
    """A run's manifest and its stages by name.

    Raises:
        InputError: there is no manifest, or it is not one.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = dict(read_json(path))
        stages = {
            entry["stage"]: StageRecord(
                Path(folder) / entry["stage"] / entry["key"], entry["facts"], entry["seconds"], entry["cached"]
            )
            for entry in manifest["stages"]
        }
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no finished run here; run divsel run first") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a run's manifest ({error!r}); run divsel run again with the same --out") from None
    return manifest, stages


def read_run(folder: str | Path) -> Run:
    """The facts of a finished run.

    Raises:
        InputError: the folder holds no finished run, or files of it are gone.
    """
    manifest, stages = read_stages(folder)
    selection = read_selection(folder, ["row_id", "cluster", "quality"])
    config = build_config(manifest["config"], str(Path(folder) / MANIFEST))
    return Run(
        rows=manifest["rows"],
        row_ids_sha256=manifest["row_ids_sha256"],
        inputs=manifest["inputs"],
        finished=datetime.fromisoformat(manifest["finished"]),
        execution=manifest["execution"],
        config=config,
        pool=Pool(**{name: stages["pool"].facts[name] for name in Pool.__dataclass_fields__}),
        clustering=_clustering(stages["cluster"], selection),
        quality=_quality(stages["quality"], selection) if "quality" in stages else None,
        stand_in=_stand_in(stages["reward"]) if "reward" in stages else None,
        base_gap=read_gap(stages["round-0/score"], held_out=True) if "round-0/score" in stages else None,
        diversity=_diversity(stages["diversity"]) if "diversity" in stages else None,
        rounds=[_round(number, stages, config) for number in round_numbers(stages)],
        timings=[Timing(name, stage.seconds, stage.cached) for name, stage in stages.items()],
    )


def round_numbers(stages: Mapping[str, StageRecord]) -> list[int]:
    """Rounds that drew rows, in order."""
    return sorted(int(name.split("/")[0].removeprefix("round-")) for name in stages if name.endswith("/draw"))


def read_selection(folder: str | Path, columns: list[str]) -> pa.Table:
    """Columns of the selected rows, in row id order.

    Raises:
        InputError: `selection.parquet` is gone.
    """
    return pq.read_table(StageRecord(Path(folder), {}, 0.0, False).file("selection.parquet"), columns=columns)


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are finite numbers."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _number(value: float | None) -> float | None:
    return next(iter(known([value])), None)


def _mean(values: Iterable[float | None]) -> Mean | None:
    numbers = known(values)
    if not numbers:
        return None
    count, mean = len(numbers), math.fsum(numbers) / len(numbers)
    if count < 2:
        return Mean(mean, None, count)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return Mean(mean, math.sqrt(variance / count), count)


def read_gap(score: StageRecord, *, held_out: bool) -> Mean | None:
    """Mean reward gap of the held-out or of the selected rows; None where no such row was scored."""
    gaps = pq.read_table(score.file("gaps.parquet"), columns=["gap", "held_out"]).to_pylist()
    return _mean(row["gap"] for row in gaps if row["held_out"] == held_out)


def _clustering(stage: StageRecord, selection: pa.Table) -> Clustering:
    sizes: list[int] = stage.facts["sizes"]
    of_row = selection["cluster"].to_pylist()
    counts, qualities = Counter(of_row), dict[int, list[float | None]]()
    for cluster, quality in zip(of_row, selection["quality"].to_pylist(), strict=True):
        qualities.setdefault(cluster, []).append(quality)
    means = {cluster: _mean(values) for cluster, values in qualities.items()}
    clusters = [
        Cluster(number, size, counts[number], mean.value if (mean := means.get(number)) else None)
        for number, size in enumerate(sizes)
    ]
    ordered = sorted(clusters, key=lambda cluster: (-cluster.size, cluster.number))
    return Clustering(ordered, stage.facts["iterations"], stage.facts["inertia"], stage.facts.get("warnings", []))


def _quality(stage: StageRecord, selection: pa.Table) -> Quality:
    files = sorted(stage.folder.glob("*.parquet"))
    total = sum(pq.read_metadata(file).num_rows for file in files)
    stride, seen = max(1, math.ceil(total / SAMPLE)), 0
    sampled: list[float] = []
    for file in files:
        values = pq.read_table(file, columns=["quality"])["quality"].to_numpy()
        sampled += known(values[-seen % stride :: stride].tolist())
        seen += len(values)
    return Quality(sampled, known(selection["quality"].to_pylist()), stage.facts["missing"])


def _diversity(stage: StageRecord) -> Diversity:
    found = read_json(stage.file("diversity.json"))
    own, random = found["selection"], found["random"]
    measures = [Compared(name, own[name], *(random[name][key] for key in ("mean", "low", "high"))) for name in found["compared"]]
    return Diversity(measures, found["draws"], own["sources"])


def _stand_in(stage: StageRecord) -> StandIn:
    return StandIn(stage.facts["held_out_accuracy"], stage.facts["accuracy_by_kind"])


def _round(number: int, stages: Mapping[str, StageRecord], config: Config) -> Round:
    mine = {name.split("/")[1]: stage for name, stage in stages.items() if name.startswith(f"round-{number}/")}
    draw, score = mine["draw"].facts, mine.get("score")
    return Round(
        number=number,
        rows=draw["rows"],
        new=draw["new"],
        weights=draw["weights"],
        seconds=sum(stage.seconds for stage in mine.values()),
        training=_training(mine["train"]) if "train" in mine else None,
        gap=read_gap(score, held_out=False) if score else None,
        held_out_gap=read_gap(score, held_out=True) if score else None,
        update=_update(mine["weights"], config) if "weights" in mine else None,
    )


def _training(stage: StageRecord) -> Training:
    lines = stage.file("training/losses.jsonl").read_text(encoding="utf-8").splitlines()
    return Training(
        steps=stage.facts["steps"],
        losses=[float(json.loads(line)["loss"]) for line in lines],
        held_out_loss_base=_number(stage.facts["held_out_loss_base"]),
        held_out_loss=_number(stage.facts["held_out_loss"]),
    )


def _update(stage: StageRecord, config: Config) -> Update:
    assert config.refine is not None
    guards, clusters = config.refine.weights, read_json(stage.file("weights.json"))
    scored = [entry for entry in clusters if entry["scored"] and entry["before"] > 0]
    floor = guards.floor / len(clusters)
    return Update(
        after=stage.facts["weights"],
        moved=stage.facts["moved"],
        told_apart=not guards.shrinkage or stage.facts["between"] > 0,
        at_step_limit=sum(_at_limit(entry["after"] / entry["before"], guards.max_step) for entry in scored),
        at_floor=sum(floor > 0 and entry["after"] <= floor * (1 + _BOUND) for entry in scored),
    )


def _at_limit(factor: float, limit: float | None) -> bool:
    return limit is not None and (factor >= limit * (1 - _BOUND) or factor <= (1 + _BOUND) / limit)
