"""Contenders: the untuned model, static samplers, iterative refinement in each direction, and controls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Literal

from divsel_ray.config import Config, RefineConfig
from divsel_ray.config.arena import Arena, Feedback
from divsel_ray.select.allocation import round_sizes
from divsel_ray.select.registry import check_sampler

BASE, RANDOM, LONG, SHUFFLED = "base", "random", "random-long", "iterative-shuffled"
TRAINING_PASSES = 3
"""Cost of a training step on a row in forward passes: one forward, and a backward pass of twice that cost."""


@dataclass(frozen=True)
class Contender:
    """One participant of an arena.

    Attributes:
        name: name in tables and of folders.
        kind: untuned model, a single draw, or rounds of draws.
        sampler: name of the sampler.
        feedback: feedback that moves the weights between rounds; None without rounds.
        long: whether it trains as long as the iterative contenders.
    """

    name: str
    kind: Literal["base", "static", "iterative"]
    sampler: str
    feedback: Feedback | None = None
    long: bool = False

    @property
    def title(self) -> str:
        """The contender in words."""
        if self.kind == "base":
            return "untuned model"
        if self.feedback == "shuffled":
            return f"iterative {self.sampler}, shuffled feedback (control)"
        if self.feedback is not None:
            return f"iterative {self.sampler}, {self.feedback}"
        return "random, as long as iterative" if self.long else self.sampler


def contenders_of(arena: Arena) -> list[Contender]:
    """All contenders, always including the untuned model and random, and both controls if any contender is iterative.

    Raises:
        InputError: a sampler is unknown or does not support the settings.
    """
    settings = arena.settings
    samplers = list(dict.fromkeys([RANDOM, *settings.samplers]))
    found = [Contender(BASE, "base", RANDOM), *(Contender(name, "static", name) for name in samplers)]
    if settings.iterative:
        sampler = arena.job.select.sampler
        feedback = dict.fromkeys([*settings.iterative, "shuffled"])
        found.append(Contender(LONG, "static", RANDOM, long=True))
        found += [Contender(f"iterative-{one}", "iterative", sampler, feedback=one) for one in feedback]
    for one in found:
        config = config_of(one, arena, arena.job, seed=0, epochs=1)
        check_sampler(config if one.kind == "iterative" else config.model_copy(update={"refine": None}))
    return found


def config_of(contender: Contender, arena: Arena, job: Config, seed: int, epochs: int) -> Config:
    """Configuration of one cell's job.

    Args:
        contender: contender of the cell.
        arena: arena with its settings.
        job: the arena's job on the pool written by the arena.
        seed: seed of the draws and of the training.
        epochs: number of epochs of each training.
    """
    train = arena.refine.train.model_copy(update={"epochs": epochs})
    # The arena has its own evaluation rows, so draws need no held-out rows.
    changes = {"held_out": 0, "static_control": False, "train": train}
    if contender.kind == "iterative":
        direction = contender.feedback if contender.feedback != "shuffled" else "lagging"
        shuffled = contender.feedback == "shuffled"
        changes["weights"] = arena.refine.weights.model_copy(update={"direction": direction, "shuffled": shuffled})
    else:
        # Initial weights and the probe apply to iterative contenders only.
        changes |= {"scored": "selected", "weights": arena.refine.weights.model_copy(update={"initial": "size"})}
    select = job.select.model_copy(update={"sampler": contender.sampler})
    refine = arena.refine.model_copy(update=changes)
    return job.model_copy(update={"seed": seed, "select": select, "refine": refine})


def long_epochs(refine: RefineConfig, budget: int, k: int) -> int:
    """Number of epochs over b random rows that cost at least as much as all rounds of an iterative contender.

    Costs are forward passes of a row, of which a training step takes `TRAINING_PASSES`: every round trains on all rows so far
    (mode restart) or on its new ones, and generates `samples` completions of each row that it scores (one pass each). The work
    of the scorer is not counted.

    Args:
        refine: settings of the rounds.
        budget: b, in rows.
        k: number of clusters; if a probe is scored, each has `refine.probe` scored rows.
    """
    sizes = round_sizes(budget, refine.rounds)
    so_far = list(accumulate(sizes))
    trained = sum(so_far if refine.train.mode == "restart" else sizes) * refine.train.epochs * TRAINING_PASSES
    scored = sum(so_far) if refine.scored == "selected" else refine.probe * k * refine.rounds
    return ceil((trained + scored * refine.generate.samples) / (TRAINING_PASSES * budget))
