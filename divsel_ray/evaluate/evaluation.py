"""`divsel evaluate` below the command line: models in, `evaluate.json` out.

Each measurement is a file next to it, named by a digest of its inputs, so a second call repeats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from divsel_ray.config import EvaluateConfig, PoolConfig
from divsel_ray.config.files import build_section, override
from divsel_ray.errors import InputError
from divsel_ray.evaluate.harness import HarnessTask, require_harness
from divsel_ray.evaluate.human_eval import HumanEval, require_human_eval
from divsel_ray.evaluate.measures import Losses, Measure, read_losses
from divsel_ray.evaluate.models import Model, Run, find_models
from divsel_ray.evaluate.results import Figure, Measured, cluster_figures, file_figures, loss_figures
from divsel_ray.evaluate.rows import held_out_rows, known_clusters, nearest_clusters, read_file, trained_on, write_rows
from divsel_ray.evaluate.stage import chat_template_of, embed_rows, measure_all, pending
from divsel_ray.models.references import unconverted
from divsel_ray.pipeline import execution_fingerprint
from divsel_ray.progress import Progress, Silent
from divsel_ray.resources import connect
from divsel_ray.store import read_json, write_json

RESULT = "evaluate.json"
_SETTING = "--rows"


@dataclass(frozen=True)
class Request:
    """The models and what to measure.

    Attributes:
        models: references of models, adapters and runs (see `find_models`).
        adapters: adapters to apply to the only model in `models`.
        every_round: measure the models of all rounds of a run.
        tasks: tasks of lm-evaluation-harness.
        tasks_folder: folder of the user's own task files.
        human_eval: whether to run HumanEval.
        rows: file of rows to measure losses on; None for the held-out rows of the runs.
        limit: maximum number of rows, of documents per task and of problems.
    """

    models: Sequence[str]
    adapters: Sequence[Path] = ()
    every_round: bool = False
    tasks: Sequence[str] = ()
    tasks_folder: Path | None = None
    human_eval: bool = False
    rows: str | None = None
    limit: int | None = None


@dataclass
class _Rows:
    """The rows that losses are measured on, and their clusters in a run, if known."""

    file: Path
    count: int
    clusters: np.ndarray | None = None


@dataclass
class _Evaluation:
    request: Request
    config: EvaluateConfig
    folder: Path
    progress: Progress
    models: list[Model] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_settings(changes: Sequence[str]) -> EvaluateConfig:
    """Build settings from `key.path=value` changes to the defaults.

    Raises:
        InputError: a key is unknown, or a value is not allowed.
    """
    return build_section(EvaluateConfig, override({}, changes), "--set", "settings")


def evaluate(request: Request, config: EvaluateConfig, out: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Run the requested measurements and write the results; returns the path of `evaluate.json`.

    Args:
        request: the models and what to measure.
        config: settings of the measurements.
        out: folder of the results. Default: `evaluate` in the run's folder if exactly one run is named, else `runs/evaluate`.
        progress: receives progress and notes.

    Raises:
        InputError: a model, a task, the rows or a package is missing, or there is nothing to measure.
        JobError: a measurement failed or took too long.
    """
    models, runs = find_models(request.models, request.adapters, request.every_round)
    folder = Path(out) if out else runs[0].folder / "evaluate" if len(runs) == 1 else Path("runs/evaluate")
    work = _Evaluation(request, _of_runs(config, runs), folder.absolute(), progress or Silent(), models, runs)
    rows = _rows(work)
    measures = _measures(work, rows)
    files = _measure(work, measures)
    target = work.folder / RESULT
    write_json(target, _result(work, rows, measures, files))
    return target


def _of_runs(config: EvaluateConfig, runs: Sequence[Run]) -> EvaluateConfig:
    """Fill unset settings from those the runs were trained with, except for trust_remote_code, which only the user sets."""
    if not runs:
        return config
    theirs = [
        {
            "max_tokens": run.train.max_tokens,
            "chat_template": run.config.refine.generate.chat_template if run.config.refine else None,
        }
        for run in runs
    ]
    missing = {key: value for key, value in theirs[0].items() if key not in config.model_fields_set}
    differing = [key for key in missing if any(one[key] != theirs[0][key] for one in theirs)]
    if differing:
        raise InputError(f"{differing[0]}: the runs were trained with different values; choose one with --set {differing[0]}=...")
    return config.model_copy(update=missing)


def _rows(work: _Evaluation) -> _Rows | None:
    """The rows for losses, without those that a model of the runs was trained on; None if there are none."""
    request = work.request
    if request.rows is not None:
        pool = work.runs[0].config.pool if work.runs else PoolConfig(data=[])
        rows: list[dict[str, Any]] | None = read_file(request.rows, _SETTING, pool, work.progress)
    else:
        rows = held_out_rows(work.runs)
        if len(work.runs) > 1 and rows is None:
            _note(work, "no losses: the runs have different held-out rows; pass rows with --rows")
    if not rows:
        return None
    seen = trained_on(work.runs)
    fresh = [row for row in rows if row["row_id"] not in seen]
    if len(fresh) < len(rows):
        _note(work, f"{len(rows) - len(fresh):,} of {len(rows):,} rows are left out because a model was trained on them")
    if not fresh:
        raise InputError(f"{_SETTING}: one of the models was trained on every row; pass other rows")
    fresh = fresh[: request.limit]
    return _Rows(write_rows(fresh, work.folder), len(fresh))


def _note(work: _Evaluation, text: str) -> None:
    work.notes.append(text)
    work.progress.note(text)


def _measures(work: _Evaluation, rows: _Rows | None) -> list[Measure]:
    request, config, template = work.request, work.config, chat_template_of(work.config)
    measures: list[Measure] = [Losses(rows.file, config, template)] if rows else []
    if request.tasks:
        tasks_folder = request.tasks_folder.expanduser().absolute() if request.tasks_folder else None
        require_harness(tasks_folder)
        measures += [HarnessTask(name, tasks_folder, request.limit, config, template) for name in request.tasks]
    if request.human_eval:
        require_human_eval(config)
        measures.append(HumanEval(request.limit, config, template, max(model.lora_rank for model in work.models)))
    if not measures:
        raise InputError("nothing to measure: pass --rows, --task or --humaneval, or a run with held-out rows")
    return measures


def _measure(work: _Evaluation, measures: Sequence[Measure]) -> list[list[Path]]:
    """The files of all measures (rows) for all models (columns)."""
    wanted = [(model, measure) for model in work.models for measure in measures]
    cached = not pending(wanted, work.folder)
    if not cached:
        for base in {model.base for model in work.models}:
            if unconverted(base):
                work.progress.note(f"converting {base}, once per machine, about a minute; the model's own terms of use apply")
        work.progress.start("evaluate")
    files = measure_all(wanted, work.folder, work.config, connect, work.progress)
    work.progress.finish("evaluate", f"{len(wanted)} measurements of {len(work.models)} models", cached=cached)
    return [files[at :: len(measures)] for at in range(len(measures))]


def _result(
    work: _Evaluation, rows: _Rows | None, measures: Sequence[Measure], files: Sequence[Sequence[Path]]
) -> dict[str, Any]:
    names = [model.name for model in work.models]
    figures: list[Figure] = []
    clusters: list[dict[str, Any]] = []
    for measure, of_models in zip(measures, files, strict=True):
        named = dict(zip(names, of_models, strict=True))
        if isinstance(measure, Losses) and rows is not None:
            measured = [Measured(name, *read_losses(file)) for name, file in named.items()]
            figures += loss_figures(measured, np.arange(rows.count))
            clusters = _by_cluster(work, rows, measured)
        else:
            figures += _file_figures(work, named)
    return {
        "models": [{**asdict(model), "adapter": model.adapter and str(model.adapter)} for model in work.models],
        "figures": [asdict(figure) for figure in figures],
        "clusters": clusters,
        "rows": rows.count if rows else 0,
        "limit": work.request.limit,
        "notes": work.notes,
        "config": work.config.model_dump(mode="json"),
        "files": {measure.name: [file.name for file in of_models] for measure, of_models in zip(measures, files, strict=True)},
        "execution": execution_fingerprint(),
    }


def _file_figures(work: _Evaluation, files: Mapping[str, Path]) -> list[Figure]:
    """The figures of a task or of HumanEval, metric by metric."""
    contents = {name: read_json(file) for name, file in files.items()}
    for lacking in sorted({content["lacking"] for content in contents.values() if content.get("lacking")}):
        _note(work, lacking)
    found = [figure for name, content in contents.items() for figure in file_figures(name, content)]
    order = list(dict.fromkeys(figure.metric for figure in found))
    return sorted(found, key=lambda figure: order.index(figure.metric))


def _by_cluster(work: _Evaluation, rows: _Rows, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Losses by the clusters of the only run; rows that are not in its pool are assigned to the nearest centroid."""
    if len(work.runs) != 1:
        return []
    run, ids = work.runs[0], pq.read_table(rows.file, columns=["row_id"])["row_id"].to_pylist()
    known = known_clusters(run, ids)
    if any(one not in known for one in ids):
        if run.config.embed.given is not None:
            _note(work, "no losses by cluster: the run uses given vectors, so new rows cannot be embedded")
            return []
        encoder = run.config.embed.model_copy(update={"trust_remote_code": work.config.trust_remote_code})
        nearest = nearest_clusters(run, embed_rows(rows.file, encoder, work.folder, connect, work.progress))
        known = {one: int(label) for one, label in zip(ids, nearest, strict=True)} | known
    found = cluster_figures(measured, np.array([known[one] for one in ids]))
    return [{**one, "figures": [asdict(figure) for figure in one["figures"]]} for one in found]
