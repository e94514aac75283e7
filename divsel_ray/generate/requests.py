"""Requests to an engine made from rows, and the rows of a shard made from its completions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from divsel_ray.config import GenerateConfig
from divsel_ray.errors import InputError, JobError, one_line
from divsel_ray.generate.engine import Completion, Engine
from divsel_ray.models.text import cut_completion, encode_prompt

Row = Mapping[str, Any]
"""row_id, and messages (role, content), the last of which is the gold completion."""

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt_messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("gold", pa.string()),
        ("generated", pa.string()),
        ("gold_tokens", pa.int64()),
        ("generated_tokens", pa.int64()),
        ("gold_cut", pa.bool_()),
        ("generated_cut", pa.bool_()),
        ("tokens", pa.int64()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
    ]
)
"""A shard: one row per completion. Gold and generated texts are cut to the same limit; token counts are taken after the cut.

A text counts as cut if it was shortened here or, for a generated text, if the engine reached its limit.
"""


@dataclass(frozen=True)
class Request:
    """One completion to generate.

    Attributes:
        row: position of the row in the shard.
        sample: number of the completion among those of the row.
        prompt: token ids.
        seed: sampling seed; depends on the job's seed, the row id and the sample alone.
    """

    row: int
    sample: int
    prompt: list[int]
    seed: int


def complete_rows(
    rows: Sequence[Row], tokenizer: Any, engine: Engine, config: GenerateConfig, seed: int, trained: str | None
) -> pa.Table:
    """Complete the prompts of a shard.

    Returns:
        A table of `SCHEMA` in row and sample order. A prompt that cannot be completed has no text, finish_reason `error` and
        the reason; it does not fail the job.

    Raises:
        JobError: the engine fails on every prompt.
    """
    requests, problems = plan_requests(rows, tokenizer, config, seed)
    answers = complete_each(engine, requests, trained)
    completions = {(request.row, request.sample): answer for request, answer in zip(requests, answers, strict=True)}
    completions |= {(row, n): Completion(None, 0, "error", why) for row, why in problems.items() for n in range(config.samples)}
    return shard_table(rows, completions, tokenizer, config)


def plan_requests(rows: Sequence[Row], tokenizer: Any, config: GenerateConfig, seed: int) -> tuple[list[Request], dict[int, str]]:
    """The requests, longest prompts first (they fill a batch best), and the rows that cannot be requested, with reasons."""
    requests: list[Request] = []
    problems: dict[int, str] = {}
    for position, row in enumerate(rows):
        try:
            prompt = _encode(row, tokenizer, config)
        except Exception as error:  # tokenizers and Jinja templates raise anything
            problems[position] = one_line(error)
            continue
        samples = range(config.samples)
        requests += [Request(position, n, prompt, completion_seed(seed, row["row_id"], n)) for n in samples]
    return sorted(requests, key=lambda request: (-len(request.prompt), request.row, request.sample)), problems


def _encode(row: Row, tokenizer: Any, config: GenerateConfig) -> list[int]:
    limit = config.max_prompt_tokens
    # One token above the limit is enough to tell that a prompt is too long.
    prompt = encode_prompt(tokenizer, row["messages"][:-1], limit if config.long_prompts == "cut" else limit + 1)
    if len(prompt) > limit:
        raise ValueError(f"the prompt is longer than max_prompt_tokens = {limit}")
    return prompt


def completion_seed(seed: int, row_id: str, sample: int) -> int:
    """The 32-bit sampling seed of one completion."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:generate:{row_id}:{sample}".encode(), digest_size=4).digest(), "big")


def complete_each(engine: Engine, requests: Sequence[Request], trained: str | None) -> list[Completion]:
    """Complete all requests in one call; if that fails, isolate the failing ones by halving.

    Raises:
        JobError: all requests fail, and they belong to several rows, so no single prompt is to blame.
    """
    completions = _halving(engine, requests, trained) if requests else []
    failed = all(completion.finish_reason == "error" for completion in completions)
    if failed and len({request.row for request in requests}) > 1:
        raise JobError(f"none of {len(completions)} prompts could be completed; the first failed with: {completions[0].error}")
    return completions


def _halving(engine: Engine, requests: Sequence[Request], trained: str | None) -> list[Completion]:
    try:
        return engine.generate([request.prompt for request in requests], [request.seed for request in requests], trained)
    except InputError:
        raise
    except Exception as error:  # an engine can raise anything, and the other prompts may still succeed
        if len(requests) == 1:
            return [Completion(None, 0, "error", one_line(error))]
        middle = len(requests) // 2
        return _halving(engine, requests[:middle], trained) + _halving(engine, requests[middle:], trained)


def shard_table(
    rows: Sequence[Row], completions: Mapping[tuple[int, int], Completion], tokenizer: Any, config: GenerateConfig
) -> pa.Table:
    """The shard's rows in row and sample order; `completions` is keyed by (position of the row, sample)."""

    def cut(text: str) -> tuple[str, int, bool]:
        """The stripped text cut to the limit, its number of tokens after the cut, and whether it was shortened."""
        kept = cut_completion(tokenizer, text.strip(), config.max_new_tokens)
        tokens = min(len(tokenizer(kept, add_special_tokens=False).input_ids), config.max_new_tokens)
        return kept, tokens, kept != text.strip()

    found = []
    for position, row in enumerate(rows):
        gold, gold_tokens, gold_cut = cut(row["messages"][-1]["content"])
        for sample in range(config.samples):
            answer = completions[position, sample]
            generated, generated_tokens, generated_cut = (None, None, None) if answer.text is None else cut(answer.text)
            found.append(
                {
                    "row_id": row["row_id"],
                    "sample": sample,
                    "prompt_messages": row["messages"][:-1],
                    "gold": gold,
                    "generated": generated,
                    "gold_tokens": gold_tokens,
                    "generated_tokens": generated_tokens,
                    "gold_cut": gold_cut,
                    "generated_cut": None if answer.text is None else generated_cut or answer.finish_reason == "length",
                    "tokens": answer.tokens,
                    "finish_reason": answer.finish_reason,
                    "error": answer.error,
                }
            )
    return pa.Table.from_pylist(found, SCHEMA)
