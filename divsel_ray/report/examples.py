"""Example texts for the report: a few selected rows, and answers to held-out prompts before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.errors import InputError
from divsel_ray.report.facts import read_selection
from divsel_ray.report.records import StageRecord, read_stages, round_numbers
from divsel_ray.stage_names import round_name

CUT = 600
"""Maximum number of characters shown of a text."""


@dataclass(frozen=True)
class Selected:
    """A selected row."""

    cluster: int
    round: int
    quality: float | None
    weight: float
    why: str
    prompt: str
    gold: str


@dataclass(frozen=True)
class Answer:
    """A completion and its reward."""

    text: str
    reward: float | None


@dataclass(frozen=True)
class HeldOut:
    """A held-out prompt, answered by the data, by the untuned model and by the model of the last round."""

    prompt: str
    gold: Answer
    base: Answer | None
    tuned: Answer


def read_selected(folder: str | Path, clusters: Sequence[int], count: int) -> list[Selected]:
    """Read the first selected row (by row id, a hash) of each of the first `count` clusters that have one."""
    found: list[Selected] = []
    columns = ["messages", "cluster", "quality", "round", "weight", "why"]
    table = read_selection(folder, columns)
    of_row = table["cluster"].to_pylist()
    first = {cluster: at for at, cluster in reversed(list(enumerate(of_row)))}
    for cluster in [cluster for cluster in clusters if cluster in first][:count]:
        row = table.slice(first[cluster], 1).to_pylist()[0]
        messages = row.pop("messages")
        found.append(Selected(**row, prompt=conversation_text(messages[:-1]), gold=cut(messages[-1]["content"])))
    return found


def read_held_out(folder: str | Path, count: int) -> list[HeldOut]:
    """Read up to `count` held-out rows in row id order; none for a static selection."""
    _, stages = read_stages(folder)
    last = max(round_numbers(stages), default=0)
    if round_name(last, "score") not in stages:
        return []
    before, after = (_answers(stages, number) for number in (0, last))
    rows = sorted((row for row in after.values() if row["held_out"]), key=lambda row: row["row_id"])
    return [_held_out(row, before.get(row["row_id"])) for row in rows[:count]]


def conversation_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A prompt as one truncated text; roles are shown if it has more than one message."""
    if len(messages) == 1:
        return cut(messages[0]["content"])
    return cut("\n\n".join(f"[{message['role']}] {message['content']}" for message in messages))


def cut(text: str, length: int = CUT) -> str:
    """The text, or its first characters and an ellipsis."""
    text = text.strip()
    return text if len(text) <= length else f"{text[:length].rstrip()} …"


def beginning(text: str, length: int) -> str:
    """The same on one line; reads only the start of the text, which can be megabytes long."""
    return cut(" ".join(text[: 4 * length].split()), length)


def _held_out(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> HeldOut:
    return HeldOut(
        prompt=conversation_text(row["prompt_messages"]),
        gold=Answer(cut(row["gold"]), row["gold_reward"]),
        base=Answer(cut(before["generated"] or ""), before["generated_reward"]) if before else None,
        tuned=Answer(cut(row["generated"] or ""), row["generated_reward"]),
    )


def _answers(stages: Mapping[str, StageRecord], number: int) -> dict[str, dict[str, Any]]:
    """Completions of a round with their rewards, by row id."""
    if (score := round_name(number, "score")) not in stages:
        return {}
    rewards = pq.read_table(stages[score].file("gaps.parquet"))
    rewards = rewards.select(["row_id", "held_out", "gold", "generated"])
    rewards = rewards.rename_columns(["row_id", "held_out", "gold_reward", "generated_reward"])
    reward = {row["row_id"]: row for row in rewards.to_pylist()}
    texts = _completions(stages[round_name(number, "generate")]).to_pylist()
    return {row["row_id"]: row | reward[row["row_id"]] for row in texts if row["row_id"] in reward}


def _completions(stage: StageRecord) -> pa.Table:
    files = sorted(stage.folder.glob("shard-*.parquet"))
    if not files and stage.facts["rows"]:
        raise InputError(f"{stage.folder}: the completions are missing; run divsel run again with the same --out")
    columns = ["row_id", "prompt_messages", "gold", "generated"]
    first = [("sample", "=", 0)]
    tables = [pq.read_table(file, columns=columns, filters=first) for file in files]
    return pa.concat_tables(tables) if tables else pa.table({"row_id": []})
