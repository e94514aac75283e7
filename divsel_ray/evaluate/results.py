"""Figures with their standard errors, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LOSS = "held-out loss"
"""Nats per completion token."""


@dataclass(frozen=True)
class Figure:
    """One metric of one model.

    Attributes:
        model: its name.
        metric: its name.
        value: what was measured.
        standard_error: of the value; None where it is not known.
        count: rows, documents or problems.
        change: value less that of the first model, on the same rows; None where it is not known.
        change_error: standard error of the change, row by row (paired), which is smaller than that of either value.
    """

    model: str
    metric: str
    value: float
    standard_error: float | None
    count: int | None
    change: float | None = None
    change_error: float | None = None


@dataclass(frozen=True)
class Measured:
    """What each row came to under one model.

    Attributes:
        model: its name.
        nats: (n,) sums of negative log-likelihood over a row's completion.
        tokens: (n,) tokens of the completions.
    """

    model: str
    nats: np.ndarray
    tokens: np.ndarray


def ratio(totals: np.ndarray, sizes: np.ndarray) -> tuple[float, float | None]:
    """Sum of totals over sum of sizes, and its standard error where rows are what is drawn (Cochran 1977, sec. 2.11).

    Args:
        totals: (n,) of each row.
        sizes: (n,) positive.

    Returns:
        The ratio r, and sqrt(n / (n - 1) * sum (total - r * size)^2) / sum(size); None below two rows. Of no row: not a number.
    """
    if not len(sizes):
        return math.nan, None
    value, count = float(totals.sum() / sizes.sum()), len(totals)
    if count < 2:
        return value, None
    squares = float(np.square(totals - value * sizes).sum())
    return value, math.sqrt(count / (count - 1) * squares) / float(sizes.sum())


def loss_figures(measured: Sequence[Measured], rows: np.ndarray) -> list[Figure]:
    """The loss of some rows under each model, and how far each is from the first.

    Args:
        measured: the first is what the others are compared with.
        rows: indices of the rows, or a mask (n,).
    """
    figures, first = [], measured[0]
    for one in measured:
        # A row that the model's chat template refuses has no tokens and counts for nothing.
        at = np.arange(len(one.tokens))[rows]
        at = at[one.tokens[at] > 0]
        nats, tokens = one.nats[at], one.tokens[at]
        # Models with tokenizers of their own cut the same text into different tokens: their losses are not comparable.
        alike = one is not first and bool((one.tokens[rows] == first.tokens[rows]).all())
        change = ratio(nats - first.nats[at], tokens) if alike else (None, None)
        figures.append(Figure(one.model, LOSS, *ratio(nats, tokens), len(nats), *change))
    return figures


def cluster_figures(measured: Sequence[Measured], clusters: np.ndarray) -> list[dict[str, Any]]:
    """The loss of each cluster's rows, most rows first.

    Args:
        measured: as of `loss_figures`.
        clusters: (n,) of each row.
    """
    numbers, counts = np.unique(clusters, return_counts=True)
    order = np.lexsort((numbers, -counts))
    return [
        {"cluster": int(number), "rows": int(count), "figures": loss_figures(measured, clusters == number)}
        for number, count in zip(numbers[order], counts[order], strict=True)
    ]


def file_figures(model: str, content: Mapping[str, Any]) -> list[Figure]:
    """The figures in a file that a task or HumanEval left."""
    return [Figure(model, one["metric"], one["value"], one["standard_error"], one["count"]) for one in content["figures"]]
