"""The input of a reward model: one conversation as token ids, truncated to the model's limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divsel_ray.errors import InputError
from divsel_ray.models.batching import pad_ids
from divsel_ray.models.loading import load_tokenizer, positions_of
from divsel_ray.models.text import Message, cut_completion
from divsel_ray.score.scorer import Exchange


@dataclass(frozen=True)
class Encoded:
    """Token ids of one text or text pair, including special tokens.

    Attributes:
        ids: (t,) token ids.
        types: (t,) segment of each token: 1 for the second text of a pair in BERT-like models, else 0.
    """

    ids: list[int]
    types: list[int]


def fast_tokenizer(folder: str, *, trust_remote_code: bool = False) -> Any:
    """Load the model's fast (Rust) tokenizer, without the truncation and padding that its file may set.

    Raises:
        InputError: the model has no fast tokenizer, which truncating prompts from the left requires.
    """
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(f"model {folder}: its tokenizer has no tokenizer.json; save it once with a fast tokenizer")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def encode_exchange(tokenizer: Any, exchange: Exchange, max_tokens: int) -> Encoded:
    """Encode a conversation with the tokenizer's chat template or, without one, as the pair (prompt, completion).

    A conversation that is too long loses the beginning of the prompt and the end of the completion; the completion gets
    at least half of `max_tokens` if it needs that.
    """
    if getattr(tokenizer, "chat_template", None):
        return _encode_chat(tokenizer, exchange, max_tokens)
    return _encode_pair(tokenizer, exchange, max_tokens)


def seen_completion(tokenizer: Any, exchange: Exchange, max_tokens: int) -> str:
    """The part of the completion that `encode_exchange` keeps."""
    if getattr(tokenizer, "chat_template", None):
        prompt_tokens = len(_chat_ids(tokenizer, exchange, ""))
    else:
        special = tokenizer.num_special_tokens_to_add(pair=True)
        prompt_tokens = special + len(_plain_encoding(tokenizer, prompt_with_roles(exchange.messages)))
    return cut_completion(tokenizer, exchange.completion, max(max_tokens // 2, max_tokens - prompt_tokens))


def prompt_with_roles(messages: Sequence[Message]) -> str:
    """The prompt as the first text of a pair: a single message without its role, several with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def collate(tokenizer: Any, batch: Sequence[Encoded], padding: int) -> dict[str, Any]:
    """Pad on the right; returns the model's inputs (ids, mask and, for models with segments, types), each (n, longest) int64."""
    import torch

    ids, mask = pad_ids([item.ids for item in batch], padding)
    types, _ = pad_ids([item.types for item in batch], 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    names = [name for name in inputs if name != "token_type_ids" or name in tokenizer.model_input_names]
    return {name: torch.from_numpy(inputs[name]) for name in names}


def position_limit(model: Any) -> int:
    """Longest input for which the model has positions; RoBERTa-like models lose those up to their padding index."""
    limit = positions_of(model.config) or 1 << 30
    embeddings = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return limit - (0 if padding is None else int(padding) + 1)


def _plain_encoding(tokenizer: Any, text: str) -> Any:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)


def _encode_pair(tokenizer: Any, exchange: Exchange, max_tokens: int) -> Encoded:
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=True)
    prompt = _plain_encoding(tokenizer, prompt_with_roles(exchange.messages))
    completion = _plain_encoding(tokenizer, exchange.completion)
    completion.truncate(max(max_tokens // 2, room - len(prompt)))
    prompt.truncate(room - len(completion), direction="left")
    pair = tokenizer.backend_tokenizer.post_process(prompt, completion)
    return Encoded(list(pair.ids), list(pair.type_ids))


def _encode_chat(tokenizer: Any, exchange: Exchange, max_tokens: int) -> Encoded:
    ids = _chat_ids(tokenizer, exchange, exchange.completion)
    if len(ids) > max_tokens:
        # The template's closing tokens, at which decoders read the score, must be kept: cut the text, not the ids.
        ids = _chat_ids(tokenizer, exchange, seen_completion(tokenizer, exchange, max_tokens))
        start = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = ids if len(ids) <= max_tokens else start + ids[len(ids) - max_tokens + len(start) :]
    return Encoded(ids, [0] * len(ids))


def _chat_ids(tokenizer: Any, exchange: Exchange, completion: str) -> list[int]:
    messages = [*exchange.messages, {"role": "assistant", "content": completion}]
    ids = list(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False)).input_ids)
    doubled = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
    return ids[1:] if doubled else ids
