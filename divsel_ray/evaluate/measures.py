"""What can be measured of a model: each kind says what its result depends on, and writes it to a file."""

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
        """What is measured, for messages."""

    @property
    def file(self) -> tuple[str, str]:
        """Name of its files: the part before the digest, and the suffix."""

    @property
    def own_engine(self) -> bool:
        """Whether it loads the model by itself, beside the one that others share."""

    def identity(self) -> list[Any]:
        """JSON values: what, beside the model, the result depends on."""

    def check(self) -> None:
        """Look for what it needs, before any model is loaded.

        Raises:
            InputError: something is not there.
        """

    def write(self, model: Model, loaded: Callable[[], LoadedModel], target: Path) -> None:
        """Measure and write `target`, atomically; `loaded` gives the base model in this process."""


@dataclass(frozen=True)
class Losses:
    """The loss of every row.

    Attributes:
        rows: Parquet (row_id, messages); the last message of each is the completion.
        config: how it is measured.
        chat_template: text of a Jinja template in place of the model's own.
    """

    rows: Path
    config: EvaluateConfig
    chat_template: str | None = None
    name = "loss"
    file = ("loss", ".parquet")
    own_engine = False

    def identity(self) -> list[Any]:
        """The rows and how they are rendered, cut and computed."""
        config = self.config
        return [1, file_digest(self.rows), config.max_tokens, config.batch_tokens, config.dtype, self.chat_template]

    def check(self) -> None:
        """Nothing to look for."""

    def write(self, model: Model, loaded: Callable[[], LoadedModel], target: Path) -> None:
        """Parquet (row_id, nats, tokens) in the order of the rows."""
        base, config = loaded(), self.config
        with base.using(model.adapter) as ready:
            write_losses(
                self.rows,
                lambda rows: losses_of(ready, base.tokenizer, rows, config.max_tokens, config.batch_tokens),
                target,
            )


def write_losses(rows: Path, measure: Callable[[list[Conversation]], tuple[np.ndarray, np.ndarray]], target: Path) -> None:
    """Measure the losses of rows and write them for `read_losses`, beside the rows' ids.

    Args:
        rows: Parquet (row_id, messages); the last message of each is the completion.
        measure: gives (n,) float64 sums of nats and (n,) int64 tokens of n rows.
        target: Parquet (row_id, nats, tokens), in the order of the rows.
    """
    table = pq.read_table(rows, columns=["row_id", "messages"])
    nats, tokens = measure([Conversation(row["row_id"], row["messages"]) for row in table.to_pylist()])
    write_table(target, pa.table({"row_id": table["row_id"], "nats": nats, "tokens": tokens}))


def read_losses(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """What `write_losses` wrote: (n,) float64 sums of nats and (n,) int64 tokens, in the order of the rows."""
    table = pq.read_table(file, columns=["nats", "tokens"])
    return table["nats"].to_numpy(), table["tokens"].to_numpy()
