"""Decontamination: rows that share runs of words with benchmark texts.

A run of `ngram` words shared by a benchmark text and a pool text is an overlap (13 words: Brown et al. 2020, "Language
Models are Few-Shot Learners", appendix C). A shorter benchmark text, down to half as many words, overlaps with a pool text
that contains all of it. Texts shorter still, such as labels and one-word answers, carry no evidence and are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from divsel_ray.data.words import WordHasher, run_hashes


@dataclass(frozen=True)
class BenchmarkIndex:
    """The runs of words that pool rows must not contain.

    Attributes:
        hashes: (m,) uint64 hashes of the runs, ascending and distinct.
        row: (m,) int64 number of the first benchmark row with the run.
        lengths: lengths of the runs in words, longest first.
        starts: (s,) uint64 hashes of the first `shortest_text(ngram)` words of texts shorter than `ngram`, ascending; a pool
            text without any of them contains none of those texts.
        ngram: number of words in a run that count as an overlap.
    """

    hashes: NDArray[np.uint64]
    row: NDArray[np.int64]
    lengths: tuple[int, ...]
    starts: NDArray[np.uint64]
    ngram: int


@dataclass(frozen=True)
class Overlap:
    """A run of words that a pool text shares with a benchmark row.

    Attributes:
        words: number of words in the run.
        row: number of the benchmark row.
    """

    words: int
    row: int


def shortest_text(ngram: int) -> int:
    """Minimum number of words in a benchmark text for it to be searched for."""
    return max(1, ngram // 2)


def build_index(rows: Iterable[object], ngram: int) -> BenchmarkIndex:
    """Index all texts of benchmark rows, about 16 bytes per word.

    Args:
        rows: parsed rows of any shape; every string in them is a text.
        ngram: number of words in a run that count as an overlap.
    """
    hasher, starts = WordHasher(), set[int]()
    hashes, numbers, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], set[int]()
    for number, row in enumerate(rows):
        for text in texts_of(row):
            words = hasher(text)
            length = min(ngram, len(words))
            if length >= shortest_text(ngram):
                hashes.append(run_hashes(words, length))
                numbers.append(np.full(len(hashes[-1]), number))
                lengths.add(length)
            if shortest_text(ngram) <= length < ngram:
                starts.add(int(run_hashes(words[: shortest_text(ngram)], shortest_text(ngram))[0]))
    distinct, first = np.unique(np.concatenate(hashes), return_index=True)
    by_length, sorted_starts = tuple(sorted(lengths, reverse=True)), np.array(sorted(starts), dtype=np.uint64)
    return BenchmarkIndex(distinct, np.concatenate(numbers)[first], by_length, sorted_starts, ngram)


def texts_of(value: object) -> Iterator[str]:
    """Every string inside a parsed row, except object keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_of(inner)


def find_overlap(index: BenchmarkIndex, texts: Iterable[NDArray[np.uint64]]) -> Overlap | None:
    """The first overlap of a row, searching the longest runs first; None if there is none.

    Args:
        index: the benchmark texts.
        texts: hashed words of each text of the row; runs do not cross from one text to the next.
    """
    texts = list(texts)
    for length in index.lengths:
        if length < index.ngram:
            texts = [words for words in texts if _may_hold_a_short_text(index, words)]
        for words in texts:
            runs = run_hashes(words, length)
            place = _places(index.hashes, runs)
            hits = np.flatnonzero(index.hashes[place] == runs)
            if len(hits):
                return Overlap(length, int(index.row[place[hits[0]]]))
    return None


def _may_hold_a_short_text(index: BenchmarkIndex, words: NDArray[np.uint64]) -> bool:
    runs = run_hashes(words, shortest_text(index.ngram))
    return bool((index.starts[_places(index.starts, runs)] == runs).any())


def _places(ascending: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The position of each value; an arbitrary valid position if it is absent."""
    return np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
