"""Texts as words, and runs of words as 64-bit numbers: the units of overlap and near-duplicate detection.

Words are lower-case runs of letters, digits and underscores after Unicode normalisation (NFKC). Chinese and Japanese are
written without spaces, so each of their characters is a word.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ASCII_WORD = re.compile(r"\w+")
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def split_words(text: str) -> list[str]:
    """The words of a text, in order.

    `"It's 3 pm."` gives `it`, `s`, `3`, `pm`.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class WordHasher:
    """Converts texts into one 64-bit hash per word, identical in every process; caches the words it has seen."""

    def __init__(self) -> None:
        self._known = _Known()

    def __call__(self, text: str) -> NDArray[np.uint64]:
        """The hashes of the text's words, (n_words,)."""
        words = split_words(text)
        return np.fromiter(map(self._known.__getitem__, words), dtype=np.uint64, count=len(words))


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = value
        return value


def join_words(texts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Concatenate several hashed texts."""
    return np.concatenate([np.empty(0, dtype=np.uint64), *texts])


def run_hashes(words: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """A hash for every run of `length` words: a polynomial in the word hashes, modulo 2^64 (Karp and Rabin 1987).

    Args:
        words: (n,) word hashes.
        length: number of words in a run; runs of different lengths have different hashes.

    Returns:
        (max(0, n - length + 1),) uint64, in the order of the runs' first words.
    """
    count = max(0, len(words) - length + 1)
    hashes = np.full(count, length, dtype=np.uint64)
    for offset in range(length if count else 0):
        hashes = hashes * _MULTIPLIER + words[offset : offset + count]
    return hashes
