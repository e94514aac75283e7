"""From rows to what an engine is asked, and from its answers to the rows of a shard."""

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
"""row_id, and messages (role, content) whose last one is the gold completion."""

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
"""A shard: a row for each completion. Gold and generated texts are cut alike; their token counts are those after the cut.

A text is cut where it does not end by itself: here or, of a generated one, by the engine at its limit.
"""


@dataclass(frozen=True)
class Request:
    """One completion to make.

    Attributes:
        row: position of its row in the shard.
        sample: which of the row's completions.
        prompt: token ids.
        seed: of its sampling; depends on the job's seed, the row id and the sample alone.
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
        A table of `SCHEMA` in row and sample order. A prompt that cannot be completed has no text, finish_reason `error`
        and says why; it never ends the job.

    Raises:
        JobError: the engine fails on every prompt.
    """
    requests, problems = plan_requests(rows, tokenizer, config, seed)
    answers = complete_each(engine, requests, trained)
    completions = {(request.row, request.sample): answer for request, answer in zip(requests, answers, strict=True)}
    completions |= {(row, n): Completion(None, 0, "error", why) for row, why in problems.items() for n in range(config.samples)}
    return shard_table(rows, completions, tokenizer, config)


def plan_requests(rows: Sequence[Row], tokenizer: Any, config: GenerateConfig, seed: int) -> tuple[list[Request], dict[int, str]]:
    """What to ask, longest prompts first (they fill a batch best), and the rows that cannot be asked, with the reason."""
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
    # One token more than allowed is enough to see that a prompt is too long.
    prompt = encode_prompt(tokenizer, row["messages"][:-1], limit if config.long_prompts == "cut" else limit + 1)
    if len(prompt) > limit:
        raise ValueError(f"the prompt has more than max_prompt_tokens = {limit} tokens")
    return prompt


def completion_seed(seed: int, row_id: str, sample: int) -> int:
    """The sampling seed of one completion, 32 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:generate:{row_id}:{sample}".encode(), digest_size=4).digest(), "big")


def complete_each(engine: Engine, requests: Sequence[Request], trained: str | None) -> list[Completion]:
    """Complete all requests in one call; where that fails, find by halving those that fail alone.

    Raises:
        JobError: the requests of several rows fail, all of them, so the fault is not a prompt's.
    """
    completions = _halving(engine, requests, trained) if requests else []
    failed = all(completion.finish_reason == "error" for completion in completions)
    if failed and len({request.row for request in requests}) > 1:
        raise JobError(f"not one of {len(completions)} prompts could be completed: {completions[0].error}")
    return completions


def _halving(engine: Engine, requests: Sequence[Request], trained: str | None) -> list[Completion]:
    try:
        return engine.generate([request.prompt for request in requests], [request.seed for request in requests], trained)
    except InputError:
        raise
    except Exception as error:  # whatever else an engine raises, the other prompts are not to blame
        if len(requests) == 1:
            return [Completion(None, 0, "error", one_line(error))]
        middle = len(requests) // 2
        return _halving(engine, requests[:middle], trained) + _halving(engine, requests[middle:], trained)


def shard_table(
    rows: Sequence[Row], completions: Mapping[tuple[int, int], Completion], tokenizer: Any, config: GenerateConfig
) -> pa.Table:
    """The shard's rows in row and sample order; `completions` is keyed by (position of the row, sample)."""

    def cut(text: str) -> tuple[str, int, bool]:
        """A text without blanks around it, cut to the limit, its tokens then, and whether any were cut off."""
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
