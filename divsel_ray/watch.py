"""Monitoring a job from outside: Ray's own metrics, and experiment trackers that receive every stage and round.

Metrics go wherever the cluster sends them (Prometheus, Ray's dashboard). Trackers are off unless `watch` names them, and their
libraries are imported only then. A tracker that fails, e.g. because its server is gone, is disabled; it never ends a job.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray.util.metrics import Gauge

from divsel_ray.config import Config, PricesConfig
from divsel_ray.errors import InputError, one_line
from divsel_ray.progress import Progress, Silent
from divsel_ray.stage_names import kind_of, round_name, round_of
from divsel_ray.usage import FACT, Usage, usage_of

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""The pip package of each tracker; the modules have the same names."""


class Tracker(Protocol):
    """Records the figures of a job."""

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        """Called when a stage is committed, or was found committed."""

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Called at the end of a round."""

    def close(self) -> None:
        """Called when no more figures follow."""


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._writer = _module("tensorboard").SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", f"```\n{config.model_dump_json(indent=1)}\n```")

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        """Scalars `stage/NAME/FIGURE` at step 0."""
        for figure, value in figures.items():
            self._writer.add_scalar(f"stage/{name}/{figure}", value, 0)

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Scalars `round/FIGURE`, one step per round."""
        for figure, value in figures.items():
            self._writer.add_scalar(f"round/{figure}", value, number)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class MLflow:
    """A run in MLflow's current experiment, as set by MLflow's own environment variables."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._mlflow = _module("mlflow")
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_dict(config.model_dump(mode="json"), "config.json")

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        """Metrics `stage/NAME/FIGURE`."""
        self._mlflow.log_metrics({f"stage/{name}/{figure}": value for figure, value in figures.items()}, step=0)

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """Metrics `round/FIGURE`, a step for each round."""
        self._mlflow.log_metrics({f"round/{figure}": value for figure, value in figures.items()}, step=number)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run in the project `divsel-ray`, as set by wandb's own environment variables."""

    def __init__(self, config: Config, folder: Path) -> None:
        settings = config.model_dump(mode="json")
        self._run = _module("wandb").init(project="divsel-ray", name=folder.name, dir=str(folder), config=settings)

    def stage(self, name: str, figures: Mapping[str, float]) -> None:
        """Summary values `stage/NAME/FIGURE`."""
        self._run.summary.update({f"stage/{name}/{figure}": value for figure, value in figures.items()})

    def round(self, number: int, figures: Mapping[str, float]) -> None:
        """History values `round/FIGURE`, along with `round`."""
        self._run.log({"round": number, **{f"round/{figure}": value for figure, value in figures.items()}})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


_TRACKERS: dict[str, Callable[[Config, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


class Watchers:
    """Passes a job's stages to the trackers, and each round's figures as soon as its weights are known.

    Args:
        trackers: trackers to notify; one that fails is disabled.
        prices: prices of the resources that stages use.
        progress: receives a note for each tracker that failed.
    """

    def __init__(
        self, trackers: Sequence[Tracker] = (), prices: PricesConfig | None = None, progress: Progress | None = None
    ) -> None:
        self._trackers = list(trackers)
        self._prices, self._progress = prices or PricesConfig(), progress or Silent()
        self._seen: dict[str, Mapping[str, Any]] = {}

    def stage(self, name: str, facts: Mapping[str, Any]) -> None:
        """Report a finished stage with its facts."""
        self._seen[name] = facts
        figures = _numbers({**facts, **facts.get(FACT, {})})
        self._tell(lambda tracker: tracker.stage(name, figures))
        number = round_of(name)
        if number is not None and kind_of(name) == "weights":
            of_round = round_figures(self._seen, number, self._prices)
            self._tell(lambda tracker: tracker.round(number, of_round))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self._progress.note(_failed(type(tracker).__name__, error))


def round_figures(stages: Mapping[str, Mapping[str, Any]], number: int, prices: PricesConfig) -> dict[str, float]:
    """The figures of a round, from the facts of the stages so far; unknown figures are left out.

    Losses are in nats per token, gaps and rewards in the reward model's units, the entropy of the next weights is a share of
    log k, and the cost covers all stages so far.
    """
    train, score, weights = (stages.get(round_name(number, kind), {}) for kind in ("train", "score", "weights"))
    cost = sum((used for facts in stages.values() if (used := usage_of(facts))), Usage())
    spent = {"cpu_hours": cost.cpu_s / 3600, "gpu_hours": cost.gpu_s / 3600, "cost": cost.money(prices)}
    of_train = {name: train.get(name) for name in ("train_loss", "held_out_loss")}
    of_score = {name: score.get(name) for name in ("mean_gap", "held_out_gap", "held_out_reward")}
    moves = {"weights_moved": weights.get("moved"), "weights_entropy": entropy(weights.get("weights", []))}
    return _numbers({**of_train, **of_score, **moves, **spent})


def entropy(weights: Sequence[float]) -> float | None:
    """Entropy of (k,) weights as a share of its maximum, log k; 1 means equal weights. None for fewer than two clusters."""
    if len(weights) < 2:
        return None
    return -math.fsum(weight * math.log(weight) for weight in weights if weight > 0) / math.log(len(weights))


def require_trackers(names: Sequence[str]) -> None:
    """Import the libraries of these trackers.

    Raises:
        InputError: one is not installed; the message says what to install.
    """
    for name in names:
        _module(name)


@contextlib.contextmanager
def watched(config: Config, folder: Path, progress: Progress, others: Sequence[Tracker] = ()) -> Iterator[Watchers]:
    """Open the configured trackers for the block, in addition to `others`; `progress` receives a note on those that fail."""
    with contextlib.ExitStack() as stack:
        trackers: list[Tracker] = [*others]
        for name in dict.fromkeys(config.watch):
            try:
                trackers.append(_TRACKERS[name](config, folder))
            except Exception as error:
                progress.note(_failed(name, error))
            else:
                stack.callback(_close, trackers[-1])
        yield Watchers(trackers, config.prices, progress)


def _close(tracker: Tracker) -> None:
    with contextlib.suppress(Exception):
        tracker.close()


def _failed(tracker: str, error: Exception) -> str:
    return f"watch: {tracker} failed and is disabled for the rest of this job ({one_line(error)})"


class Metered:
    """Progress that is also sent to Ray's metrics: `divsel_done`, `divsel_total` and `divsel_per_second` by stage and unit."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._stage, self._began = "", time.monotonic()
        tags = ("stage", "unit")
        self._done = Gauge("divsel_done", "Completed units of the running stage.", tags)
        self._total = Gauge("divsel_total", "Total units of the running stage.", tags)
        self._rate = Gauge("divsel_per_second", "Completed units of the running stage per second.", tags)

    def note(self, text: str) -> None:
        """Pass on."""
        self._inner.note(text)

    def start(self, stage: str) -> None:
        """Pass on."""
        self._stage, self._began = stage, time.monotonic()
        self._inner.start(stage)

    def advance(self, done: int, total: int, unit: str) -> None:
        """Set the metrics and pass on."""
        tags, spent = {"stage": self._stage, "unit": unit}, max(time.monotonic() - self._began, 1e-9)
        for gauge, value in ((self._done, done), (self._total, total), (self._rate, done / spent)):
            gauge.set(value, tags)
        self._inner.advance(done, total, unit)

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Pass on."""
        self._inner.finish(stage, text, cached=cached)


def _numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the facts."""
    numbers = {name: value for name, value in facts.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _module(tracker: str) -> Any:
    package = PACKAGES[tracker]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"watch: {tracker} needs the package {package} ({error}); pip install {package}") from None
