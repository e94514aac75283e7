"""One worker's share of the training: its sequences and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from divsel_ray.config import TrainConfig
from divsel_ray.train.encoding import Example, pack
from divsel_ray.train.plan import column_bounds, cut_steps, part_bounds, parts_of, plan_steps

T = TypeVar("T")


@dataclass(frozen=True)
class Schedule:
    """One worker's batches for every optimiser step.

    Attributes:
        sequences: sequences of one example, or of several if packed.
        batches: indices of sequences, for all epochs; some may be empty.
        batches_per_step: number of batches in an optimiser step.
    """

    sequences: list[list[Example]]
    batches: list[list[int]]
    batches_per_step: int

    @property
    def steps(self) -> int:
        """Total number of optimiser steps."""
        return len(self.batches) // self.batches_per_step


def schedule(examples: Sequence[Example], config: TrainConfig, seed: int) -> Schedule:
    """Plan a worker's batches, together with the other workers of the torch process group, if there is one.

    Sequences are packed within a column of the plan, so that they too do not depend on the number of workers.

    Args:
        examples: the examples of the worker's parts, in order.
        config: hyper-parameters; there are as many parts as configured workers, but fewer workers may be running.
        seed: seed of the order.

    Raises:
        RuntimeError: the number of examples does not match the worker's parts.
    """
    counts, worker = gather(len(examples)), rank()
    rows, workers, parts = sum(counts), len(counts), max(config.workers.count or 1, len(counts))
    mine, bounds = parts_of(worker, workers, parts), part_bounds(rows, parts)
    if len(examples) != bounds[mine.stop] - bounds[mine.start]:
        raise RuntimeError(f"worker {worker} holds {len(examples)} of {rows} rows, not its parts {mine} of {parts}")
    per_part = config.batch_size * config.gradient_accumulation
    held = range(mine.start * per_part, mine.stop * per_part)
    columns = [examples[start:end] for start, end in pairwise(column_bounds(rows, parts * per_part, held))]
    packed = [pack(column, config.max_tokens) if config.packing else [[example] for example in column] for column in columns]
    sizes = [len(column) for column in packed]
    # A worker with several parts needs more batches per step, and all workers must run the same number.
    batches_per_step = config.gradient_accumulation * max(len(parts_of(one, workers, parts)) for one in range(workers))
    steps = plan_steps(sizes, held, max(gather(max(sizes))), config.epochs, seed)
    batches = cut_steps(steps, config.batch_size, batches_per_step)
    return Schedule([sequence for column in packed for sequence in column], batches, batches_per_step)


def gather(value: T) -> list[T]:
    """The values of all workers, in the order of their ranks."""
    import torch.distributed as group

    if not group.is_initialized():
        return [value]
    values: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(values, value)
    return values


def rank() -> int:
    """This worker's number."""
    import torch.distributed as group

    return int(group.get_rank()) if group.is_initialized() else 0
