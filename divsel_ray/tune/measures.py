"""Computes the figures of a trial's finished run, also those that its own stages do not record; the Ray side of `objectives`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from divsel_ray.cluster import rows, silhouette
from divsel_ray.cluster.exact import exact_total
from divsel_ray.cluster.stage import CENTROIDS, check, open_rows
from divsel_ray.config import Config
from divsel_ray.config.tuning import BenchmarkConfig, TuningConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Progress
from divsel_ray.report.records import StageRecord, number, read_stages, round_numbers
from divsel_ray.resources import Cluster
from divsel_ray.stage_names import round_name
from divsel_ray.store import Store, read_json
from divsel_ray.train.stage import trained_folder
from divsel_ray.tune.objectives import EVALUATE, SILHOUETTE, figure_of, figures_wanted, guesses_mode, of_selection
from divsel_ray.watch import round_figures

VERSION = 1
"""Version of the silhouette stage; incremented when its contents change."""
HUMAN_EVAL = "humaneval"


def measure(tuning: TuningConfig, config: Config, store: Store, cluster: Cluster, progress: Progress) -> dict[str, float]:
    """The objective and the additional measures of a finished run, by name.

    Args:
        tuning: the search, which names the figures; see `objectives.FIGURES`.
        config: configuration of the run.
        store: run folder.
        cluster: resources for measuring what the run does not contain yet.
        progress: receives the progress of such measurements.

    Raises:
        JobError: a figure is not available for this run.
    """
    _, stages = read_stages(store.root)
    facts = {stage: record.facts for stage, record in stages.items()}

    def value_of(name: str) -> float | None:
        """Compute a figure according to its kind."""
        match figure_of(name).of:
            case "selection":
                return of_selection(stages, name)
            case "clusters":
                return silhouette_of(stages, config, store, cluster, progress)
            case "benchmark":
                guessed = name == tuning.objective and guesses_mode(tuning)
                return benchmark(name.removeprefix(EVALUATE), stages, config, tuning.benchmark, store.root, guessed=guessed)
            case "round":
                return number(round_figures(facts, round_numbers(stages)[-1], config.prices).get(name))

    found = {name: value_of(name) for name in figures_wanted(tuning)}
    unknown = [name for name, value in found.items() if value is None]
    if unknown:
        raise JobError(f"{store.root}: {unknown[0]} is not available for this run; choose another objective or measure")
    return {name: value for name, value in found.items() if value is not None}


def silhouette_of(
    stages: dict[str, StageRecord], config: Config, store: Store, cluster: Cluster, progress: Progress
) -> float | None:
    """Mean simplified silhouette of all rows (see `cluster.silhouette`), stored as a stage; None for a single cluster."""
    record, sizes = stages["cluster"], np.array(stages["cluster"].facts["sizes"])
    if np.count_nonzero(sizes) < 2:
        return None
    stage = store.stage(SILHOUETTE, VERSION, {"metric": config.cluster.metric}, [record.folder.name])
    if not stage.committed:
        progress.start(SILHOUETTE)
        stage.start()
        files = rows.check_files(rows.list_files([str(path) for path in sorted(stages["embed"].folder.glob("*.parquet"))]))
        with open_rows(files, config.cluster, cluster, progress) as held:
            check(held, files, config.cluster)
            parts = held.map(silhouette.simplified, np.load(record.folder / CENTROIDS), sizes)
        stage.commit({SILHOUETTE: exact_total(np.sum(parts, axis=0)) / files.rows})
    return number(stage.facts[SILHOUETTE])


def benchmark(
    name: str, stages: dict[str, StageRecord], config: Config, asked: BenchmarkConfig, root: Path, *, guessed: bool = False
) -> float | None:
    """The score of a run's last model on `TASK` or `TASK:METRIC` of `divsel evaluate`; by default the task's first metric.

    Args:
        name: task and metric.
        stages: stages of the run.
        config: configuration of the run.
        asked: settings of the benchmark.
        root: run folder.
        guessed: whether higher is only assumed to be better when trials are compared by this score.

    Raises:
        InputError: the task is unknown, its data is unavailable, it has no such metric, or lower is better despite `guessed`.
    """
    from divsel_ray.evaluate.evaluation import Request, evaluate

    assert config.refine is not None
    task, _, metric = name.partition(":")
    trained = trained_folder(stages[round_name(round_numbers(stages)[-1], "train")].folder, config.refine.train)
    folder = None if asked.tasks_folder is None else Path(asked.tasks_folder)
    humaneval = task == HUMAN_EVAL
    tasks = [] if humaneval else [task]
    request = Request([str(trained)], tasks=tasks, tasks_folder=folder, human_eval=humaneval, limit=asked.limit)
    result = evaluate(request, asked.settings, root / "evaluate" / task)
    found = read_json(result)
    wanted = [one for one in found["figures"] if not metric or metric in one["metric"].split()]
    if not wanted:
        raise InputError(f"{EVALUATE}{name}: expected one of the metrics {', '.join(one['metric'] for one in found['figures'])}")
    if guessed and not humaneval and _less_is_better(wanted[0]["metric"], result.with_name(found["files"][task][0])):
        raise InputError(f"{EVALUATE}{name}: lower {wanted[0]['metric']} is better; set mode: min; finished work is kept")
    return number(wanted[0]["value"])


def _less_is_better(label: str, file: Path) -> bool:
    """Whether lower is better according to the report of lm-evaluation-harness; only the loaded task knows it."""
    task, metric, *_ = label.split()
    return read_json(file)["raw"]["higher_is_better"].get(task, {}).get(metric) is False


def require_benchmarks(names: Sequence[str], asked: BenchmarkConfig) -> None:
    """Raise if the requirements of a benchmark are not met.

    Raises:
        InputError: a package or the tasks folder is missing.
    """
    if not names:
        return
    from divsel_ray.evaluate.harness import require_harness
    from divsel_ray.evaluate.human_eval import require_human_eval

    for name in names:
        if name.removeprefix(EVALUATE).partition(":")[0] == HUMAN_EVAL:
            require_human_eval(asked.settings)
        else:
            require_harness(None if asked.tasks_folder is None else Path(asked.tasks_folder).expanduser())
