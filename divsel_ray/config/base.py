"""Base classes of the configuration's sections."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Workers(Section):
    """Number of processes that run a stage, and the resources of each.

    Not part of a stage's identity, except in `refine.train` (count, CPUs) and `refine.generate` (CPUs): they change rounding.
    """

    count: int | None = Field(
        None,
        ge=1,
        description="Number of actors; null: as many as the cluster's CPUs (or GPUs) allow. Default: null, but 1 in refine.train "
        "and refine.generate.",
    )
    cpus: float = Field(1, gt=0, description="CPUs per actor; also its number of compute threads.")
    gpus: float | None = Field(None, ge=0, description="GPUs per actor. Default: 1 if the cluster has any, else 0.")

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> Workers:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus {self.gpus:g}: expected a whole number, or a fraction below 1; Ray assigns nothing else")
        return self


def as_list(value: Any) -> Any:
    """Wrap a single string in a list."""
    return [value] if isinstance(value, str) else value
