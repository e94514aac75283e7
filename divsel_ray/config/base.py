"""What every section of the configuration is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Workers(Section):
    """How many processes run a stage and what each is given.

    Not part of a stage's identity, except of `refine.train` (count and CPUs) and `refine.generate` (CPUs), where it rounds sums.
    """

    count: int | None = Field(
        None,
        ge=1,
        description="Actors; null: as many as the cluster's CPUs (or GPUs) hold. Default: null, but 1 in refine.train and "
        "refine.generate.",
    )
    cpus: float = Field(1, gt=0, description="CPUs per actor; also its number of compute threads.")
    gpus: float | None = Field(None, ge=0, description="GPUs per actor. Default: 1 where the cluster has any, else 0.")

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> Workers:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus {self.gpus:g}: Ray gives whole GPUs, or a part of one; set a whole number, or less than 1")
        return self


def as_list(value: Any) -> Any:
    """One value as a list of one."""
    return [value] if isinstance(value, str) else value
