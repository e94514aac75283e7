"""The figures of a trial's finished run that its own stages do not hold already; the Ray side of `objectives`."""

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
"""Of the silhouette's stage; raised when what it holds changes."""
HUMAN_EVAL = "humaneval"


def measure(tuning: TuningConfig, config: Config, store: Store, cluster: Cluster, progress: Progress) -> dict[str, float]:
    """Objective and further measures of a finished run, by name.

    Args:
        tuning: names them, see `objectives.FIGURES`.
        config: of the run.
        store: its folder.
        cluster: where what is not known yet is measured.
        progress: where the user is told.

    Raises:
        JobError: one is not known of this run.
    """
    _, stages = read_stages(store.root)
    facts = {stage: record.facts for stage, record in stages.items()}

    def value_of(name: str) -> float | None:
        """A figure by what it is known of."""
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
        raise JobError(f"{store.root}: {unknown[0]} is not known of this run; take another objective or measure")
    return {name: value for name, value in found.items() if value is not None}


def silhouette_of(
    stages: dict[str, StageRecord], config: Config, store: Store, cluster: Cluster, progress: Progress
) -> float | None:
    """Mean simplified silhouette of all rows (see `cluster.silhouette`); None of a single cluster. Kept as a stage."""
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
    """The score of a run's last model in `TASK` or `TASK:METRIC` of `divsel evaluate`; the task's first metric by default.

    Args:
        name: of the task and the metric.
        stages: of the run.
        config: of the run.
        asked: how the model is asked.
        root: the run's folder.
        guessed: trials are compared by it as if more were better, though no one said so.

    Raises:
        InputError: the task is not known or its data cannot be had, it has no such metric, or less of it is better.
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
        raise InputError(f"{EVALUATE}{name}: less of {wanted[0]['metric']} is better; set mode: min, and what is there is kept")
    return number(wanted[0]["value"])


def _less_is_better(label: str, file: Path) -> bool:
    """Whether lm-evaluation-harness says so of the metric in what it reported; only the loaded task knows it."""
    task, metric, *_ = label.split()
    return read_json(file)["raw"]["higher_is_better"].get(task, {}).get(metric) is False


def require_benchmarks(names: Sequence[str], asked: BenchmarkConfig) -> None:
    """Refuse to start without what a benchmark needs.

    Raises:
        InputError: a package or the folder of tasks is not there.
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
