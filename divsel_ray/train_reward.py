"""Implementation of `divsel train-reward`: fit a reward model to preferences.

A row is a prompt with a chosen and a rejected completion:

    {"prompt": "...", "chosen": "...", "rejected": "..."}                    texts
    {"chosen": [messages], "rejected": [messages], "prompt": ...}            whole conversations, or their last messages
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from divsel_ray.config import FitRewardConfig
from divsel_ray.data.conversation import BadRow, Message, canonicalise, row_id
from divsel_ray.data.inputs import find_inputs
from divsel_ray.data.pool import bad_rows_allowed, quarantine_line
from divsel_ray.data.readers import Record, read_records
from divsel_ray.data.turns import kind_of, read_turns, text_of
from divsel_ray.errors import InputError
from divsel_ray.models.loading import hush_transformers
from divsel_ray.models.references import resolve_model
from divsel_ray.progress import Progress, Silent
from divsel_ray.score.bradley_terry import fit_comparisons, is_decoder
from divsel_ray.score.preferences import Comparison, draw
from divsel_ray.score.scorer import Exchange
from divsel_ray.store import atomic_path, write_json

FACTS = "train-reward.json"
"""File with the measurements, next to the model."""
FEWEST = 10
_RATES = {"encoder": 5e-4, "decoder": 5e-5}
"""Learning rates of the top layers, AdamW."""


@dataclass(frozen=True)
class Training:
    """Settings of `train_reward`.

    Attributes:
        base: encoder or causal language model: local folder, Hugging Face id or package:NAME.
        held_out: share of the prompts held out to measure accuracy.
        epochs: passes over the pairs.
        learning_rate: learning rate of AdamW; if None, 5e-4 for an encoder and 5e-5 for a causal language model.
        max_tokens: maximum tokens of prompt and completion together.
        trained_layers: number of top layers trained along with the head (all, if the model's layers are not known).
        max_bad_rows: bad rows tolerated; if None, the larger of 100 and 1 %.
        seed: seed of the split, the order of the pairs and the new output layer.
    """

    base: str = FitRewardConfig.model_fields["base"].default
    held_out: float = 0.1
    epochs: int = 1
    learning_rate: float | None = None
    max_tokens: int = 512
    trained_layers: int = 3
    max_bad_rows: int | None = None
    seed: int = 0


def train_reward(
    data: Sequence[str], out: str | Path, training: Training | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Fit a Bradley-Terry reward model and save it as an ordinary transformers folder, usable as `reward.model`.

    Bad rows are listed in `<out>.quarantine.jsonl`, and measurements are written to `<out>/train-reward.json`.

    Args:
        data: preference files, in the same forms as `pool.data`.
        out: folder of the model.
        training: settings.
        progress: receives the number of training steps.

    Returns:
        {"pairs", "held_out_pairs", "bad_rows", "refused": pairs rejected by the base's chat template, "held_out_accuracy",
        "held_out_interval": its 95 % interval (Wilson), "train_loss", "seconds", "base"}.

    Raises:
        InputError: the data or the base cannot be used, too many rows are bad, fewer than 10 pairs are left, or `out` contains
            something other than a model written by this command.
    """
    settings, progress, out = training or Training(), progress or Silent(), Path(out)
    if not 0 < settings.held_out < 1:
        raise InputError(f"--held-out {settings.held_out:g}: expected a share between 0 and 1, e.g. 0.1")
    _check_replaceable(out)
    config = _fit_config(settings)
    progress.start("train-reward")
    hush_transformers()
    quarantine = out.with_name(f"{out.name}.quarantine.jsonl")
    pairs, bad_rows = read_preferences(data, quarantine, settings.max_bad_rows)
    if bad_rows:
        progress.note(f"{bad_rows:,} bad rows; {quarantine} lists them")
    train, held_out = split_by_prompt(pairs, settings.held_out, settings.seed)
    fitted = fit_comparisons(
        train, held_out, config, settings.seed, out, lambda done, total: progress.advance(done, total, "steps")
    )
    if fitted["refused"]:
        progress.note(f"{fitted['refused']:,} pairs are left out because the chat template of {settings.base} rejects them")
    accuracy = fitted.pop("held_out_accuracy")
    fitted.pop("accuracy_by_kind")
    interval = wilson_interval(round(accuracy * fitted["held_out_pairs"]), fitted["held_out_pairs"])
    facts = {**fitted, "bad_rows": bad_rows, "held_out_accuracy": accuracy, "held_out_interval": interval, "base": settings.base}
    write_json(out / FACTS, facts)
    low, high = interval
    progress.finish("train-reward", f"held-out accuracy {accuracy:.3f} ({low:.3f} to {high:.3f})", cached=False)
    return facts


def _check_replaceable(out: Path) -> None:
    """Check that nothing else is lost when the model replaces the whole folder.

    Raises:
        InputError: `out` is a file, or a folder with other content.
    """
    if out.is_file():
        raise InputError(f"--out {out}: is a file; choose a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / FACTS).is_file():
        raise InputError(f"--out {out}: contains files not written by this command, which would be lost; choose a new folder")


def read_preferences(data: Sequence[str], quarantine: Path, max_bad_rows: int | None = None) -> tuple[list[Comparison], int]:
    """All distinct pairs in the files, and the number of bad rows, which are listed in `quarantine`.

    Raises:
        InputError: a file does not exist, too many rows are bad, or fewer than 10 pairs are left.
    """
    found: dict[str, Comparison] = {}
    bad: list[str] = []
    rows, first = 0, ""
    for source, record in _records(data):
        rows += 1
        try:
            pair = parse_preference(record)
            found.setdefault(_pair_id(pair), pair)
        except BadRow as error:
            bad.append(quarantine_line(source, record, error.reason))
            first = first or f"; the first is {source} {record.position}: {error.reason}, see {quarantine}"
    if bad:
        with atomic_path(quarantine) as path, path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.writelines(bad)
    limit = bad_rows_allowed(rows, max_bad_rows)
    if len(bad) > limit or len(found) < FEWEST:
        raise InputError(
            f"{', '.join(data)}: {len(found):,} distinct pairs (at least {FEWEST} are needed) and {len(bad):,} bad rows "
            f"(at most {limit:,} are allowed){first}"
        )
    return list(found.values()), len(bad)


def _records(data: Sequence[str]) -> Iterator[tuple[str, Record]]:
    for file in find_inputs(list(data), "PREFS"):
        for record in read_records(file):
            yield file.name, record


def parse_preference(record: Record) -> Comparison:
    """Parse the pair of a row.

    Raises:
        BadRow: the row cannot be read, lacks a part, or its two completions are identical or answer different prompts.
    """
    if record.reason is not None:
        raise BadRow(record.reason)
    row = record.value
    if not isinstance(row, Mapping):
        raise BadRow(f"the row is {kind_of(row)}, expected an object")
    chosen, rejected = (canonicalise(_conversation(row, key)) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("chosen and rejected answer different prompts")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise BadRow("chosen and rejected are identical")
    prompt = row_id(chosen[:-1])
    kept, other = (Exchange(prompt, _plain(messages[:-1]), messages[-1]["content"]) for messages in (chosen, rejected))
    return Comparison(kept, {"rejected": other})


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _conversation(row: Mapping[str, Any], key: str) -> list[Message]:
    """Prompt and completion of one side; a side that is a whole conversation needs no prompt."""
    if isinstance(row.get(key), list):
        messages = read_turns(row[key], key)
        if any(message["role"] == "user" for message in messages):
            return messages
    else:
        messages = [{"role": "assistant", "content": text_of(row, key)}]
    if isinstance(row.get("prompt"), list):
        return [*read_turns(row["prompt"], "prompt"), *messages]
    return [{"role": "user", "content": text_of(row, "prompt")}, *messages]


def _pair_id(pair: Comparison) -> str:
    return f"{pair.chosen.row_id}\0{pair.chosen.completion}\0{pair.rejected['rejected'].completion}"


def split_by_prompt(pairs: Sequence[Comparison], share: float, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Split into training and held-out pairs without common prompts, in an order that depends on content alone.

    Raises:
        InputError: all pairs have the same prompt.
    """
    prompts = sorted({pair.chosen.row_id for pair in pairs}, key=lambda prompt: (draw(seed, "held_out", prompt), prompt))
    if len(prompts) < 2:
        raise InputError("the preferences have a single prompt; at least two are needed, one of them held out")
    apart = set(prompts[: min(len(prompts) - 1, math.ceil(share * len(prompts)))])
    ordered = sorted(pairs, key=_pair_id)
    return [pair for pair in ordered if pair.chosen.row_id not in apart], [
        pair for pair in ordered if pair.chosen.row_id in apart
    ]


def _fit_config(settings: Training) -> FitRewardConfig:
    """The settings of the fit; an invalid setting or base is reported before any data is read."""
    usual = _usual_rate(settings.base)
    try:
        return FitRewardConfig(
            base=settings.base,
            epochs=settings.epochs,
            learning_rate=usual if settings.learning_rate is None else settings.learning_rate,
            max_tokens=settings.max_tokens,
            trained_layers=settings.trained_layers,
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise InputError(f"--{option} {wrong['input']}: {wrong['msg'].lower()}") from None


def _usual_rate(base: str) -> float:
    try:
        return _RATES["decoder" if is_decoder(resolve_model(base)) else "encoder"]
    except (OSError, ValueError):
        raise InputError(f"--base {base}: not a model that transformers can load") from None


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), which stays within 0 and 1.

    Example:
        >>> wilson_interval(9, 10)
        (0.5958, 0.9821)
    """
    z = 1.959964
    centre = (right + z * z / 2) / (count + z * z)
    spread = z / (count + z * z) * math.sqrt(right * (count - right) / count + z * z / 4)
    return round(max(0.0, centre - spread), 4), round(min(1.0, centre + spread), 4)
