"""Measurements of a model: each kind states what its result depends on, and writes the result to a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divsel_ray.config import EvaluateConfig
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.evaluate.loss import Conversation, losses_of
from divsel_ray.evaluate.models import Model
from divsel_ray.store import file_digest, write_table


class Measure(Protocol):
    """One kind of measurement."""

    @property
    def name(self) -> str:
        """Name of the measurement, for messages."""

    @property
    def file(self) -> tuple[str, str]:
        """Parts of the file name: the stem before the digest, and the suffix."""

    @property
    def own_engine(self) -> bool:
        """Whether it loads the model itself instead of using the shared one."""

    def identity(self) -> list[Any]:
        """JSON values on which the result depends, in addition to the model."""

    def check(self) -> None:
        """Check its requirements before any model is loaded.

        Raises:
            InputError: something is missing.
        """

    def write(self, model: Model, loaded: Callable[[], LoadedModel], target: Path) -> None:
        """Measure and write `target` atomically; `loaded` returns the base model in this process."""


@dataclass(frozen=True)
class Losses:
    """The loss of every row.

    Attributes:
        rows: Parquet file (row_id, messages); the last message of each row is the completion.
        config: settings of the measurement.
        chat_template: text of a Jinja template that replaces the model's own.
    """

    rows: Path
    config: EvaluateConfig
    chat_template: str | None = None
    name = "loss"
    file = ("loss", ".parquet")
    own_engine = False

    def identity(self) -> list[Any]:
        """The rows, and the settings by which they are rendered, cut and computed."""
        config = self.config
        return [1, file_digest(self.rows), config.max_tokens, config.batch_tokens, config.dtype, self.chat_template]

    def check(self) -> None:
        """Nothing to check."""

    def write(self, model: Model, loaded: Callable[[], LoadedModel], target: Path) -> None:
        """Write Parquet (row_id, nats, tokens) in the order of the rows."""
        base, config = loaded(), self.config
        with base.using(model.adapter) as ready:
            write_losses(
                self.rows,
                lambda rows: losses_of(ready, base.tokenizer, rows, config.max_tokens, config.batch_tokens),
                target,
            )


def write_losses(rows: Path, measure: Callable[[list[Conversation]], tuple[np.ndarray, np.ndarray]], target: Path) -> None:
    """Measure the losses of rows and write them, with the row ids, for `read_losses`.

    Args:
        rows: Parquet file (row_id, messages); the last message of each row is the completion.
        measure: returns (n,) float64 sums of nats and (n,) int64 numbers of tokens for n rows.
        target: Parquet file to write (row_id, nats, tokens), in the order of the rows.
    """
    table = pq.read_table(rows, columns=["row_id", "messages"])
    nats, tokens = measure([Conversation(row["row_id"], row["messages"]) for row in table.to_pylist()])
    write_table(target, pa.table({"row_id": table["row_id"], "nats": nats, "tokens": tokens}))


def read_losses(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of `write_losses`: (n,) float64 sums of nats and (n,) int64 tokens, in the order of the rows."""
    table = pq.read_table(file, columns=["nats", "tokens"])
    return table["nats"].to_numpy(), table["tokens"].to_numpy()
