"""Implements `divsel tune`: runs a search, compares its trials and writes the best configuration.

<out>/trials/<key>/   run folder of a trial; can be passed to `divsel report`
<out>/shared/         stages that trials share, each built once
<out>/.state/         state that Ray Tune pickles to resume after a kill; accessible to the owner only
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from divsel_ray.config import Config
from divsel_ray.config.tuning import Dimension, TuningConfig
from divsel_ray.errors import InputError
from divsel_ray.needs import check_cluster
from divsel_ray.pipeline import plan_job, require_models
from divsel_ray.plan import known_of
from divsel_ray.progress import Progress, Silent
from divsel_ray.resources import connect
from divsel_ray.select.registry import check_sampler
from divsel_ray.store import Stage, Store, digest
from divsel_ray.tune.common import make_common
from divsel_ray.tune.concurrency import choose_concurrency, share_of
from divsel_ray.tune.measures import require_benchmarks
from divsel_ray.tune.objectives import check_figures, figure_of, figures_wanted, mode_of
from divsel_ray.tune.outcome import Outcome, Trial, compare, read_trial
from divsel_ray.tune.page import write_outcome
from divsel_ray.tune.record import OBJECTIVE, ROUND, SHARED, STATE, TRIALS, read_record
from divsel_ray.tune.trial import Setting, decoded, trainable
from divsel_ray.watch import require_trackers

TRIAL_CPUS = 0.01
"""CPUs of Ray Tune's own process for a trial, which only waits; the stages of the job request what they need."""
_POLL_SECONDS = 0.5
_OF_INPUTS = ("pool", "clean", "embed", "reward", "quality")
"""Stages whose keys contain hashes of files and models that the settings only name."""


def tune_job(tuning: TuningConfig, out: str | Path, progress: Progress | None = None) -> Outcome:
    """Try settings of a job and compare the trials, resuming from what the folder already contains.

    Writes `tune.json`, `tune.html` and, if a trial finished, `best.yaml` to the folder.

    Args:
        tuning: the search.
        out: output folder, on storage that every node can access.
        progress: receives the progress of stages and trials.

    Raises:
        InputError: settings, data or the cluster do not match, or Optuna is requested but not installed.
        JobError: another process is using the folder.
    """
    store, progress = Store(out), progress or Silent()
    configs = [tuning.config_of(corner) for corner in tuning.corners()]
    _check(tuning, configs)
    with store.lock():
        shared = store.root / SHARED
        known = known_of(plan_job(configs[0], shared))
        cluster = connect()
        for config in configs:
            check_cluster(config, cluster)
        concurrency = choose_concurrency(tuning.concurrency, configs, cluster, tuning.count, known)
        make_common([tuning.config_of(point) for point in tuning.variations()], shared, cluster, progress)
        name = _name(tuning, concurrency, plan_job(configs[0], shared))
        setting = Setting(tuning, store.root, share_of(cluster, concurrency), name)
        with _followed(setting, progress):
            trials = _search(setting, concurrency)
        outcome = compare(tuning, trials, concurrency)
        write_outcome(outcome, store.root)
    return outcome


def _check(tuning: TuningConfig, configs: Sequence[Config]) -> None:
    """Raise before anything starts on errors that would otherwise fail each trial."""
    check_figures(tuning, configs)
    require_benchmarks([name for name in figures_wanted(tuning) if figure_of(name).of == "benchmark"], tuning.benchmark)
    if tuning.searcher == "optuna":
        _require_optuna()
    for config in configs:
        check_sampler(config)
        require_trackers(config.watch)
        require_models(config)


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError(f"searcher optuna: the package is missing ({error}); pip install optuna, or use random") from None


def _name(tuning: TuningConfig, concurrency: int, planned: Sequence[tuple[Stage, bool]]) -> str:
    """Name of Ray Tune's state: a different search in the same folder starts afresh, but reuses the stages of earlier ones.

    The same search over other data or models, which the keys of the first stages reveal, also counts as different.
    """
    inputs = [stage.key for stage, _ in planned if stage.name in _OF_INPUTS]
    return digest([tuning.model_dump(mode="json"), concurrency, inputs])


def _search(setting: Setting, concurrency: int) -> list[Trial]:
    """Let Ray Tune run the trials, or resume those that it had started."""
    _quiet()
    state = setting.out / STATE
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.chmod(0o700)
    tuner = _tuner(setting, concurrency, state)
    return _trials(setting, tuner.fit())


def _trials(setting: Setting, results: Iterable[Any]) -> list[Trial]:
    """One trial for each run folder: among trials with equal settings, preferably one that did not fail."""
    found: dict[Path, Trial] = {}
    for result in results:
        point = decoded(setting.tuning, result.config)
        folder = setting.folder(point)
        if folder not in found or found[folder].state == "failed":
            found[folder] = read_trial(folder, setting.name, point, setting.tuning, result.error)
    return list(found.values())


def _tuner(setting: Setting, concurrency: int, state: Path) -> Any:
    from ray import tune

    tuning, place = setting.tuning, state / setting.name
    function = tune.with_resources(trainable(setting), {"CPU": TRIAL_CPUS})
    if _restorable(place):
        return tune.Tuner.restore(str(place), function, resume_unfinished=True, restart_errored=True)
    shutil.rmtree(place, ignore_errors=True)
    return tune.Tuner(
        function,
        param_space={name: _domain(dimension, tuning.searcher) for name, dimension in tuning.search.items()},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode=mode_of(tuning),
            search_alg=_searcher(tuning, concurrency),
            scheduler=_scheduler(tuning),
            num_samples=tuning.trials or 1,
            reuse_actors=True,
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(name=setting.name, storage_path=str(state), verbose=0),
    )


def _restorable(place: Path) -> bool:
    """Whether a search can be resumed; one that was killed before its first snapshot starts afresh."""
    from ray import tune

    return bool(tune.Tuner.can_restore(str(place))) and any(place.glob("experiment_state-*.json"))


def _dirname(trial: Any) -> str:
    return str(trial.trial_id)


def _domain(dimension: Dimension, searcher: str) -> Any:
    from ray import tune

    if dimension.choice is not None:
        numbers = list(range(len(dimension.choice)))
        return tune.grid_search(numbers) if searcher == "grid" else tune.choice(numbers)
    low, high = getattr(dimension, dimension.kind)
    # Ray's whole numbers end below the upper one.
    return getattr(tune, dimension.kind)(low, high + 1 if dimension.kind.endswith("randint") else high)


def _searcher(tuning: TuningConfig, concurrency: int) -> Any:
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if tuning.searcher != "optuna":
        return BasicVariantGenerator(max_concurrent=concurrency, random_state=tuning.seed)
    from ray.tune.search.optuna import OptunaSearch

    return ConcurrencyLimiter(OptunaSearch(metric=OBJECTIVE, mode=mode_of(tuning), seed=tuning.seed), concurrency)


def _scheduler(tuning: TuningConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if tuning.scheduler == "none":
        return FIFOScheduler()
    rounds = max(refine.rounds for corner in tuning.variations() if (refine := tuning.config_of(corner).refine))
    # The report of a finished job must not look like a trial stopped by asha.
    most = max(rounds, tuning.grace_rounds) + 1
    return ASHAScheduler(time_attr=ROUND, max_t=most, grace_period=tuning.grace_rounds, reduction_factor=tuning.reduction)


def _quiet() -> None:
    """Disable Ray Tune's tables, banners, loggers and SIGINT handler, and have it write its state every second."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _followed(setting: Setting, progress: Progress) -> Iterator[None]:
    """Report the progress of running trials from the records in their folders."""
    progress.start(TRIALS)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(setting, progress, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress.finish(TRIALS, f"{setting.tuning.count} compared by {setting.tuning.objective}", cached=False)


def _follow(setting: Setting, progress: Progress, stop: threading.Event) -> None:
    objective, told, ended = setting.tuning.objective, set[str](), False
    # The results of earlier commands were reported by them.
    for name, record in _records(setting).items():
        list(_news(name, record, objective, told))
    while not ended:
        ended = stop.wait(_POLL_SECONDS)
        records = _records(setting)
        for name, record in records.items():
            for line in _news(name, record, objective, told):
                progress.note(line)
        done = sum(record["state"] != "running" for record in records.values())
        progress.advance(done, setting.tuning.count, TRIALS)


def _records(setting: Setting) -> dict[str, dict[str, Any]]:
    """The records of this search's trials so far, by key."""
    found = {path.name: read_record(path, setting.name) for path in sorted((setting.out / TRIALS).glob("*"))}
    return {name: record for name, record in found.items() if record}


def _news(name: str, record: dict[str, Any], objective: str, told: set[str]) -> Iterator[str]:
    """News of a trial that has not been reported yet: its rounds and its end."""
    settings = ", ".join(f"{place}={value}" for place, value in record["settings"].items())
    said = [f"round {one[ROUND]}: {objective} {one[objective]:.4g}" for one in record["rounds"] if objective in one]
    if record["state"] == "finished":
        said.append(f"finished: {objective} {record['figures'][objective]:.4g}")
    elif record["state"] == "failed":
        said.append(f"failed: {record['error']}")
    for line in [f"trial {name} ({settings}) {one}" for one in said]:
        if line not in told:
            told.add(line)
            yield line
