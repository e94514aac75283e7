"""Figures with standard errors, computed from measurements."""

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
        model: name of the model.
        metric: name of the metric.
        value: measured value.
        standard_error: standard error of the value; None if unknown.
        count: number of rows, documents or problems.
        change: value minus that of the first model, on the same rows; None if unknown.
        change_error: standard error of the change, paired by row, which is smaller than that of either value.
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
    """The loss of each row under one model.

    Attributes:
        model: name of the model.
        nats: (n,) sums of negative log-likelihood over each row's completion.
        tokens: (n,) numbers of tokens in the completions.
    """

    model: str
    nats: np.ndarray
    tokens: np.ndarray


def ratio(totals: np.ndarray, sizes: np.ndarray) -> tuple[float, float | None]:
    """Sum of totals over sum of sizes, and its standard error with rows as the sampling unit (Cochran 1977, sec. 2.11).

    Args:
        totals: (n,) total of each row.
        sizes: (n,) size of each row, positive.

    Returns:
        The ratio r (NaN without rows), and sqrt(n / (n - 1) * sum (total - r * size)^2) / sum(size) (None below two rows).
    """
    if not len(sizes):
        return math.nan, None
    value, count = float(totals.sum() / sizes.sum()), len(totals)
    if count < 2:
        return value, None
    squares = float(np.square(totals - value * sizes).sum())
    return value, math.sqrt(count / (count - 1) * squares) / float(sizes.sum())


def loss_figures(measured: Sequence[Measured], rows: np.ndarray) -> list[Figure]:
    """The loss of some rows under each model, and its difference from the first model's.

    Args:
        measured: losses by model; the others are compared with the first.
        rows: indices of the rows, or a mask (n,).
    """
    figures, first = [], measured[0]
    for one in measured:
        # A row that the model's chat template refuses has no tokens and does not count.
        at = np.arange(len(one.tokens))[rows]
        at = at[one.tokens[at] > 0]
        nats, tokens = one.nats[at], one.tokens[at]
        # Models with different tokenizers split the same text into different tokens, so their losses are not comparable.
        alike = one is not first and bool((one.tokens[rows] == first.tokens[rows]).all())
        change = ratio(nats - first.nats[at], tokens) if alike else (None, None)
        figures.append(Figure(one.model, LOSS, *ratio(nats, tokens), len(nats), *change))
    return figures


def cluster_figures(measured: Sequence[Measured], clusters: np.ndarray) -> list[dict[str, Any]]:
    """The loss of each cluster's rows, most rows first.

    Args:
        measured: see `loss_figures`.
        clusters: (n,) cluster of each row.
    """
    numbers, counts = np.unique(clusters, return_counts=True)
    order = np.lexsort((numbers, -counts))
    return [
        {"cluster": int(number), "rows": int(count), "figures": loss_figures(measured, clusters == number)}
        for number, count in zip(numbers[order], counts[order], strict=True)
    ]


def file_figures(model: str, content: Mapping[str, Any]) -> list[Figure]:
    """The figures in a file written by a task or by HumanEval."""
    return [Figure(model, one["metric"], one["value"], one["standard_error"], one["count"]) for one in content["figures"]]
