"""A whole job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section
from divsel_ray.config.embedding import EmbedConfig
from divsel_ray.config.refinement import RefineConfig
from divsel_ray.config.scoring import QualityConfig, RewardConfig
from divsel_ray.config.selection import CleanConfig, ClusterConfig, PoolConfig, SelectConfig


class PricesConfig(Section):
    """What compute costs, for the cost table."""

    cpu_hour: float = Field(0, ge=0, description="Money per CPU and hour.")
    gpu_hour: float = Field(0, ge=0, description="Money per GPU and hour.")
    gib_hour: float = Field(0, ge=0, description="Money per GiB of memory and hour.")
    currency: str = Field("USD", description="The money's name.")


class Config(Section):
    """A whole job."""

    budget: int = Field(ge=1, description="How many rows (or tokens) to keep.")
    nested: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="Smaller budgets; each is a selection too, and part of the next larger one."
    )
    budget_unit: Literal["rows", "tokens"] = Field("rows", description="tokens: as many rows as fit in that many tokens.")
    allow_fewer: bool = Field(False, description="Accept a pool smaller than the budget.")
    seed: int = Field(0, ge=0, description="Same seed, data and settings: same rows.")
    pool: PoolConfig
    clean: CleanConfig = CleanConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    reward: RewardConfig | None = Field(None, description="Needed by quality `reward` and by `refine`.")
    quality: QualityConfig = QualityConfig()
    select: SelectConfig = SelectConfig()
    refine: RefineConfig | None = Field(None, description="Leave out for a static selection.")
    prices: PricesConfig = PricesConfig()
    watch: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        [], description="Trackers that are told of stages and rounds; each must be installed."
    )
    placement_timeout_s: float = Field(600, gt=0, description="Seconds to wait for a place on the cluster before giving up.")

    @property
    def scores_by_reward(self) -> bool:
        """Whether anything is scored by what the `reward` section names."""
        return self.quality.source == "reward" or self.refine is not None

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.reward is None and self.scores_by_reward:
            raise ValueError("quality `reward` and `refine` need a `reward` section (a reward model to name or to fit)")
        kind, _, column = self.quality.source.partition(":")
        if kind == "column" and self.pool.score_column != column:
            raise ValueError(
                f"quality.source column:{column} needs pool.score_column: {column}, the one column of the input that the pool "
                f"keeps; it is {self.pool.score_column or 'not set'}"
            )
        if self.quality.oversample is not None and (self.budget_unit == "tokens" or self.select.quotas):
            raise ValueError("quality.oversample: needs a budget of rows without select.quotas; leave it out")
        if self.refine is not None and self.budget < self.refine.rounds:
            raise ValueError(f"budget {self.budget} is smaller than the {self.refine.rounds} rounds it is spread over")
        if self.refine is not None and (self.nested or self.select.quotas or self.budget_unit == "tokens"):
            raise ValueError("nested, select.quotas and budget_unit tokens are for static selections: leave them or `refine` out")
        weights, k = self.select.weights, self.cluster.k
        if weights is not None and k is not None and len(weights) != k:
            raise ValueError(f"select.weights: {len(weights)} weights for cluster.k {k}; give one for each")
        if any(budget >= self.budget for budget in self.nested):
            raise ValueError(f"nested {self.nested}: expected budgets smaller than budget {self.budget}")
        return self
