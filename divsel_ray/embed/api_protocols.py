"""Requests to and responses from embedding servers, in the two most common protocols."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from divsel_ray.config import EmbedApiConfig
from divsel_ray.models.api_client import UnavailableError

PATHS = {"openai": "embeddings", "cohere": "embed"}
"""Paths relative to the server's address."""


@dataclass(frozen=True)
class Answer:
    """Vectors (n, d) float32, and the tokens that the server counted (None if it did not report them)."""

    vectors: np.ndarray
    tokens: int | None


def write_body(config: EmbedApiConfig, texts: Sequence[str]) -> dict[str, Any]:
    """Build the body of the request for a batch of texts.

    OpenAI: https://platform.openai.com/docs/api-reference/embeddings; Cohere: https://docs.cohere.com/reference/embed (v2).
    """
    if config.protocol == "openai":
        dimensions = {} if config.dimensions is None else {"dimensions": config.dimensions}
        return {"model": config.model, "input": list(texts), "encoding_format": "float", **dimensions}
    dimensions = {} if config.dimensions is None else {"output_dimension": config.dimensions}
    kind = {"input_type": "clustering", "embedding_types": ["float"], "truncate": "END"}
    return {"model": config.model, "texts": list(texts), **kind, **dimensions}


def read_answer(config: EmbedApiConfig, body: bytes, count: int) -> Answer:
    """Read the vectors of an answer, in the order of the texts.

    Args:
        config: settings with the protocol.
        body: body of the answer.
        count: number of texts sent.

    Raises:
        UnavailableError: the body does not contain one finite vector per text, all of the same length.
    """
    try:
        value = json.loads(body)
        rows, tokens = _read_openai(value) if config.protocol == "openai" else _read_cohere(value)
        vectors = np.array(rows, np.float32)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UnavailableError("the answer contains no embeddings in JSON", billed=True) from None
    if vectors.ndim != 2 or len(vectors) != count or not vectors.shape[1] or not np.isfinite(vectors).all():
        raise UnavailableError(f"the answer to {count} texts has vectors of shape {vectors.shape}, or not finite", billed=True)
    return Answer(vectors, tokens if isinstance(tokens, int) and tokens >= 0 else None)


def _read_openai(value: Any) -> tuple[list[Any], Any]:
    rows = [one["embedding"] for one in sorted(value["data"], key=lambda one: one["index"])]
    usage = value.get("usage") or {}
    return rows, usage.get("total_tokens", usage.get("prompt_tokens"))


def _read_cohere(value: Any) -> tuple[list[Any], Any]:
    billed = (value.get("meta") or {}).get("billed_units") or {}
    return value["embeddings"]["float"], billed.get("input_tokens")
