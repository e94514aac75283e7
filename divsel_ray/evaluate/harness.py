"""Tasks of lm-evaluation-harness (Gao et al. 2024), by name or from a folder of task files; without Ray.

A name is looked up among the task files of the folder first, then among the harness's own. Paths in task files are
relative to their folder. A task file may name Python functions (`!function`): that code runs.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divsel_ray.config import EvaluateConfig
from divsel_ray.errors import InputError, one_line
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.evaluate.models import Model
from divsel_ray.models.companions import installed_version
from divsel_ray.models.text import PLAIN_TEMPLATE
from divsel_ray.store import digest, file_digest, write_json

PACKAGE = "lm-eval"
_ERROR = "_stderr"


@dataclass(frozen=True)
class HarnessTask:
    """A task, or a group of tasks.

    Attributes:
        name: name of the task or group.
        folder: folder of the user's own task files, or None.
        limit: maximum number of documents per task, taken from the beginning.
        config: settings of the measurement.
        chat_template: text of a Jinja template that replaces the model's own.
    """

    name: str
    folder: Path | None
    limit: int | None
    config: EvaluateConfig
    chat_template: str | None = None
    file = ("task", ".json")
    own_engine = False

    def identity(self) -> list[Any]:
        """The task's name, the version of the harness, the content of the folder, and the settings of the measurement."""
        config = self.config
        asked = [config.fewshot, config.chat, config.dtype, config.batch_size, self.chat_template if config.chat else None]
        return [2, self.name, installed_version(PACKAGE), self._content, self.limit, *asked]

    @functools.cached_property
    def _content(self) -> str | None:
        """A digest of all files in the folder, which contains the task's data."""
        if self.folder is None:
            return None
        files = sorted(path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        # Once a task file's functions have run, Python leaves its cache next to them.
        return digest([[str(file), file_digest(self.folder / file)] for file in files if "__pycache__" not in file.parts])

    def check(self) -> None:
        """Load the task and its data."""
        with _inside(self.folder):
            _load_task(self.name, self.folder)

    def write(self, model: Model, loaded: Callable[[], LoadedModel], target: Path) -> None:
        """Write JSON {"figures": [{"metric", "value", "standard_error", "count"}], "raw": the harness's report}."""
        base = loaded()
        with base.using(model.adapter) as ready, _inside(self.folder):
            raw = self._evaluate(ready, base.tokenizer)
        write_json(target, {"figures": figures_of(raw, self.name), "raw": raw})

    def _evaluate(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        if self.config.chat and not tokenizer.chat_template:
            # Other measurements use the model's own tokenizer, without a template.
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = PLAIN_TEMPLATE
        manager = _manager(self.name, self.folder)
        try:
            answer: Any = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.config.batch_size),
                tasks=[self.name],
                num_fewshot=self.config.fewshot,
                limit=self.limit,
                log_samples=False,
                bootstrap_iters=1000,
                apply_chat_template=self.config.chat,
                task_manager=manager,
            )
        except ValueError as error:
            raise InputError(f"task {self.name}: {one_line(error)}") from None
        kept = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better")
        return dict(json.loads(json.dumps({key: answer.get(key, {}) for key in kept}, default=str)))


def require_harness(folder: Path | None) -> None:
    """Check that lm-evaluation-harness is installed and that the folder of task files exists.

    Raises:
        InputError: one of them is missing.
    """
    if installed_version(PACKAGE) is None:
        raise InputError('--task: lm-evaluation-harness is not installed; run: pip install "divsel-ray[eval]"')
    if folder is not None and not folder.is_dir():
        raise InputError(f"--tasks-folder: {folder}: no such folder")


def figures_of(raw: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The figures in a report of the harness: those of the named task or group, or of every task of a tag.

    Returns:
        A list of {"metric", "value", "standard_error" (None if unknown), "count" (documents)}.
    """
    results = raw["results"]
    figures = []
    for task in [name] if name in results else sorted(results):
        for key, value in results[task].items():
            metric, _, variant = key.partition(",")
            if not isinstance(value, int | float) or isinstance(value, bool) or not variant or metric.endswith(_ERROR):
                continue
            error = results[task].get(f"{metric}{_ERROR},{variant}")
            label = f"{task} {metric}" + (f" ({variant})" if variant != "none" else "")
            figures.append({"metric": label, "value": value, "standard_error": _finite(error), "count": _count(raw, task)})
    return figures


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(raw: Mapping[str, Any], task: str) -> int | None:
    """Number of documents of a task; for a group, of all its tasks."""
    samples = raw["n-samples"]
    if task in samples:
        return int(samples[task]["effective"])
    total = raw["results"][task].get("sample_len") or sum(entry["effective"] for entry in samples.values())
    return int(total) or None


def _load_task(name: str, folder: Path | None) -> None:
    manager = _manager(name, folder)
    try:
        manager.load([name])
    except ConnectionError as error:
        raise InputError(
            f"task {name}: its data could not be downloaded ({one_line(error)}); without a network, write a task file "
            "for local data and pass its folder with --tasks-folder"
        ) from None
    except Exception as error:
        # The data's readers and the task's own code can raise anything.
        raise InputError(f"task {name}: cannot be loaded: {one_line(error)}") from None


def _manager(name: str, folder: Path | None) -> Any:
    """The harness's index that contains a task.

    Raises:
        InputError: no task has this name.
    """
    own = _index(folder, everything=False) if folder else None
    if own is not None and name in own.all_tasks:
        return own
    manager = _index(folder, everything=True)
    if name not in manager.all_tasks:
        close = difflib.get_close_matches(name.lower(), manager.all_tasks, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see lm-evaluation-harness's list of tasks"
        raise InputError(f"task {name}: lm-evaluation-harness has no such task; {hint}")
    return manager


@functools.cache
def _index(folder: Path | None, *, everything: bool) -> Any:
    """The tasks of a folder and, with `everything`, of the harness too, whose index takes ten seconds to read."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=str(folder) if folder else None, include_defaults=everything)


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """Make the folder the current one within the block."""
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        yield
    finally:
        os.chdir(before)
