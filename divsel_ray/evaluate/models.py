"""Models to evaluate: a name, the weights and an optional adapter; and the models of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from divsel_ray.config import Config, TrainConfig
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.generate.trained import is_adapter
from divsel_ray.models.references import PACKAGE, fingerprint, resolve_model, unconverted
from divsel_ray.report.records import StageRecord, read_stages, round_numbers
from divsel_ray.stage_names import round_name
from divsel_ray.store import RUN_MANIFEST, read_json
from divsel_ray.train.stage import trained_folder

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        name: name in tables; unique among the models of a call.
        base: folder (of a base model or of a fine-tuned checkpoint), Hugging Face id or package:NAME.
        adapter: folder of a LoRA adapter on top of the base, or None.
    """

    name: str
    base: str
    adapter: Path | None = None

    @property
    def fingerprint(self) -> list[str]:
        """Fingerprints of the base and of the adapter, if any."""
        return [fingerprint(self.base), *([fingerprint(str(self.adapter))] if self.adapter else [])]

    @property
    def lora_rank(self) -> int:
        """The adapter's rank; 0 without one."""
        return int(read_json(self.adapter / _ADAPTER_CONFIG)["r"]) if self.adapter else 0


@dataclass(frozen=True)
class Run:
    """A finished run whose models are measured.

    Attributes:
        folder: folder of the run.
        config: configuration of the job.
        stages: stages by name.
    """

    folder: Path
    config: Config
    stages: Mapping[str, StageRecord]

    @property
    def train(self) -> TrainConfig:
        """Training settings of the run's models.

        Raises:
            InputError: the run trained no model.
        """
        if self.config.refine is None:
            raise InputError(f"{self.folder}: this run selected rows without training a model; pass a model to evaluate")
        return self.config.refine.train

    def models(self, prefix: str, every_round: bool) -> list[Model]:
        """The untuned base, the model of the last round or of every round, and the static control if there is one."""
        rounds = round_numbers(self.stages)
        wanted = {f"round {number}": round_name(number, "train") for number in (rounds if every_round else rounds[-1:])}
        wanted |= {"static": control} if (control := round_name(None, "train")) in self.stages else {}
        tuned = [self._tuned(f"{prefix}{name}", self.stages[stage].folder) for name, stage in wanted.items()]
        return [Model(f"{prefix}untuned", self.train.model), *tuned]

    def _tuned(self, name: str, stage: Path) -> Model:
        folder = trained_folder(stage, self.train)
        if not folder.is_dir():
            raise InputError(f"{folder}: this model of the run is missing; run divsel run again with the same --out")
        return Model(name, self.train.model, folder) if self.train.method == "lora" else Model(name, str(folder))


def is_run(reference: str) -> bool:
    """Whether a reference is a finished run's folder."""
    return (Path(reference).expanduser() / RUN_MANIFEST).is_file()


def read_run(folder: Path) -> Run:
    """Read a run from its manifest.

    Raises:
        InputError: the manifest is invalid, or of another version.
    """
    manifest, stages = read_stages(folder)
    return Run(folder, build_config(manifest["config"], str(folder / RUN_MANIFEST)), stages)


def find_models(references: Sequence[str], adapters: Sequence[Path], every_round: bool = False) -> tuple[list[Model], list[Run]]:
    """Resolve references to models, and return the runs among them.

    Args:
        references: folders, Hugging Face ids and package:NAME of models; folders of adapters, whose base is named in
            adapter_config.json; folders of finished runs.
        adapters: folders of adapters to apply to the only model in `references`.
        every_round: use the models of all rounds of a run.

    Raises:
        InputError: a reference cannot be found, a run has no model, or the base model of the adapters is ambiguous.
    """
    runs = [read_run(Path(reference).expanduser().absolute()) for reference in references if is_run(reference)]
    if adapters and (len(references) != 1 or runs or is_adapter(references[0])):
        raise InputError("--adapter: expected exactly one model, the adapter's base model; remove the others")
    models: list[Model] = []
    waiting = iter(runs)
    for reference in references:
        if is_run(reference):
            run = next(waiting)
            models += run.models(f"{run.folder.name} " if len(references) > 1 else "", every_round)
        else:
            models.append(_named_model(reference))
    models += [_with_adapter(str(adapter), adapter, models[0].base) for adapter in adapters]
    return _told_apart(models), runs


def _named_model(reference: str) -> Model:
    path = Path(reference).expanduser()
    if not is_adapter(str(path)):
        return Model(reference, _checked(reference))
    base = read_json(path / _ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{path}: {_ADAPTER_CONFIG} names no base model; run divsel evaluate BASE --adapter {path}")
    return _with_adapter(reference, path, _checked(str(base)))


def _checked(reference: str) -> str:
    """Check a reference, and make a folder's path absolute; a package is not yet converted."""
    if not reference.startswith(PACKAGE):
        return resolve_model(reference)
    unconverted(reference)
    return reference


def _with_adapter(name: str, adapter: Path, base: str) -> Model:
    folder = adapter.expanduser().absolute()
    if not is_adapter(str(folder)):
        raise InputError(f"{folder}: contains no {_ADAPTER_CONFIG}; expected an adapter as saved by PEFT")
    return Model(name, base, folder)


def _told_apart(models: Sequence[Model]) -> list[Model]:
    """The models by distinct names; a repeated model is dropped."""
    kept: dict[str, Model] = {}
    for model in models:
        other = kept.setdefault(model.name, model)
        if other != model:
            raise InputError(f"{model.name}: two models would have this name; pass longer paths")
    return list(kept.values())
