"""Conversations as token ids, and token ids as batches.

Prompts are padded on the left and completions on the right, so that all completions of a batch begin at the same position,
and logits are computed only from there on. With Gemma's 262k-token vocabulary, the logits of prompt positions cost more
than the rest of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divsel_ray.errors import one_line
from divsel_ray.models.text import Message, encode_completion, encode_prompt


@dataclass(frozen=True)
class Conversation:
    """One training row; the last of its messages is the completion."""

    row_id: str
    messages: Sequence[Message]


@dataclass(frozen=True)
class Example:
    """Token ids of one row.

    Attributes:
        prompt: context of the completion.
        completion: tokens on which the loss is computed.
        refusal: why the chat template refuses the row; such a row is one padding token without a loss, which keeps its
            place in the plan so that the other rows keep theirs.
    """

    prompt: list[int]
    completion: list[int]
    refusal: str = ""

    @property
    def size(self) -> int:
        """Number of tokens in prompt and completion."""
        return len(self.prompt) + len(self.completion)


def encode(tokenizer: Any, rows: Sequence[Conversation], max_tokens: int) -> list[Example]:
    """Tokenise rows to at most `max_tokens`: a prompt is cut to what the completion leaves, but not below half of them.

    A row that the chat template refuses (for an unknown role, say) does not fail the job: see `Example.refusal`.
    """
    examples = []
    for row in rows:
        try:
            examples.append(_encode(tokenizer, row, max_tokens))
        except Exception as error:  # tokenizers and Jinja templates raise anything
            examples.append(Example([padding_of(tokenizer)], [], one_line(error)))
    return examples


def _encode(tokenizer: Any, row: Conversation, max_tokens: int) -> Example:
    prompt = encode_prompt(tokenizer, row.messages[:-1], max_tokens)
    completion = encode_completion(tokenizer, row.messages[-1]["content"], max_tokens)
    room = max(max_tokens - len(completion), max_tokens // 2)
    prompt = prompt if len(prompt) <= room else encode_prompt(tokenizer, row.messages[:-1], room)
    return Example(prompt, completion[: max_tokens - len(prompt)])


def padding_of(tokenizer: Any) -> int:
    """The token used to pad batches, even if the tokenizer defines none."""
    return int(next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None))


def pack(examples: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Pack examples into sequences of at most `max_tokens` (first fit, longest first)."""
    sequences: list[list[Example]] = []
    free: list[int] = []
    for example in sorted(examples, key=lambda example: -example.size):
        place = next((i for i, room in enumerate(free) if room >= example.size), len(free))
        if place == len(free):
            sequences.append([])
            free.append(max_tokens)
        sequences[place].append(example)
        free[place] -= example.size
    return sequences


def collate(sequences: Sequence[Sequence[Example]], padding: int) -> dict[str, Any]:
    """Make a batch of sequences of one or several examples each; without sequences, a batch without labels.

    Returns:
        input_ids, position_ids: (sequences, tokens); keep: (positions,) positions whose logits predict a completion token in
        any sequence; labels: (sequences, positions), -100 where nothing is predicted; and, if every sequence consists of a
        single example, attention_mask: (sequences, tokens).
    """
    sequences = sequences or [[Example([padding], [])]]
    if all(len(sequence) == 1 for sequence in sequences):
        return _aligned([sequence[0] for sequence in sequences], padding)
    return _packed(sequences, padding)


def _aligned(examples: Sequence[Example], padding: int) -> dict[str, Any]:
    import torch

    left = max(len(example.prompt) for example in examples)
    right = max(1, *(len(example.completion) for example in examples))
    ids = torch.full((len(examples), left + right), padding)
    mask = torch.zeros((len(examples), left + right), dtype=torch.long)
    labels = torch.full((len(examples), right), -100)
    for row, example in enumerate(examples):
        start, end = left - len(example.prompt), left + len(example.completion)
        ids[row, start:end] = torch.tensor(example.prompt + example.completion)
        mask[row, start:end] = 1
        labels[row, : len(example.completion)] = torch.tensor(example.completion)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    keep = torch.arange(left - 1, left + right - 1)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "keep": keep, "labels": labels}


def _packed(sequences: Sequence[Sequence[Example]], padding: int) -> dict[str, Any]:
    """Concatenate examples. Their position ids restart, which makes transformers' masks separate them if no attention mask is
    passed (in architectures that pass `loss.check_packing`); padding therefore counts as one more example, without labels."""
    import torch

    shape = (len(sequences), max(sum(example.size for example in sequence) for sequence in sequences))
    ids, labels = torch.full(shape, padding), torch.full(shape, -100)
    positions = torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        start = 0
        for example in sequence:
            end, completion = start + example.size, start + len(example.prompt)
            ids[row, start:end] = torch.tensor(example.prompt + example.completion)
            positions[row, start:end] = torch.arange(example.size)
            labels[row, completion - 1 : end - 1] = torch.tensor(example.completion)
            start = end
        positions[row, start:] = torch.arange(shape[1] - start)
    keep = (labels != -100).any(0).nonzero().flatten()
    return {"input_ids": ids, "position_ids": positions, "keep": keep, "labels": labels[:, keep]}
