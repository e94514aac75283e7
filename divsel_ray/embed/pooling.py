"""Long texts: split into chunks, embed each, average the chunk vectors by token count (Yu et al. 2024, sec. 2.1)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Token = TypeVar("Token")


def split_tokens(tokens: list[Token], window: int, max_tokens: int) -> list[list[Token]]:
    """Split the first `max_tokens` tokens into consecutive chunks of at most `window`; an empty text is one empty chunk."""
    kept = tokens[:max_tokens]
    return [kept[start : start + window] for start in range(0, len(kept), window)] or [[]]


def pool_chunks(vectors: np.ndarray, counts: np.ndarray, owners: np.ndarray, rows: int) -> np.ndarray:
    """Mean of each row's chunk vectors, weighted by the chunks' token counts.

    Args:
        vectors: (c, d) chunk vectors.
        counts: (c,) tokens in each chunk; if all chunks of a row are empty, they are weighted equally.
        owners: (c,) row of each chunk, in 0..rows-1.
        rows: number of rows.

    Returns:
        (rows, d) float64. Chunk vectors of ones average to ones, whatever the token counts.
    """
    weights = np.maximum(counts.astype(np.float64), 1e-9)
    totals = np.bincount(owners, weights, minlength=rows)
    sums = np.zeros((rows, vectors.shape[1]))
    np.add.at(sums, owners, vectors * weights[:, None])
    return sums / totals[:, None]


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Scale the rows of (n, d) vectors to unit Euclidean length; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
