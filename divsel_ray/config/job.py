"""The configuration of a complete job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section
from divsel_ray.config.embedding import EmbedConfig
from divsel_ray.config.refinement import RefineConfig
from divsel_ray.config.scoring import QualityConfig, RewardConfig
from divsel_ray.config.selection import CleanConfig, ClusterConfig, PoolConfig, SelectConfig


class PricesConfig(Section):
    """Prices of compute, for the cost table."""

    cpu_hour: float = Field(0, ge=0, description="Price per CPU-hour.")
    gpu_hour: float = Field(0, ge=0, description="Price per GPU-hour.")
    gib_hour: float = Field(0, ge=0, description="Price per GiB of memory and hour.")
    currency: str = Field("USD", description="Currency of all prices.")


class Config(Section):
    """A complete job."""

    budget: int = Field(ge=1, description="Number of rows (or tokens) to select.")
    nested: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="Smaller budgets; each gives a selection too, which is part of the next larger one."
    )
    budget_unit: Literal["rows", "tokens"] = Field("rows", description="tokens: select as many rows as fit in that many tokens.")
    allow_fewer: bool = Field(False, description="Accept a pool smaller than the budget.")
    seed: int = Field(0, ge=0, description="Random seed; the same seed, data and settings select the same rows.")
    pool: PoolConfig
    clean: CleanConfig = CleanConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    reward: RewardConfig | None = Field(None, description="Required by quality source `reward` and by `refine`.")
    quality: QualityConfig = QualityConfig()
    select: SelectConfig = SelectConfig()
    refine: RefineConfig | None = Field(None, description="Leave out for a static selection.")
    prices: PricesConfig = PricesConfig()
    watch: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        [], description="Experiment trackers that receive metrics of stages and rounds; each must be installed."
    )
    placement_timeout_s: float = Field(600, gt=0, description="Seconds to wait for resources on the cluster before giving up.")

    @property
    def scores_by_reward(self) -> bool:
        """Whether anything is scored by the `reward` section."""
        return self.quality.source == "reward" or self.refine is not None

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.reward is None and self.scores_by_reward:
            raise ValueError("quality source `reward` and `refine` need a `reward` section that names or fits a reward model")
        kind, _, column = self.quality.source.partition(":")
        if kind == "column" and self.pool.score_column != column:
            raise ValueError(
                f"quality.source column:{column} needs pool.score_column: {column}, the only extra column of the input that the "
                f"pool keeps; it is {self.pool.score_column or 'not set'}"
            )
        if self.quality.oversample is not None and (self.budget_unit == "tokens" or self.select.quotas):
            raise ValueError("quality.oversample: needs a budget in rows and no select.quotas; remove it")
        if self.refine is not None and self.budget < self.refine.rounds:
            raise ValueError(f"budget {self.budget}: is smaller than refine.rounds {self.refine.rounds}, over which it is spread")
        if self.refine is not None and (self.nested or self.select.quotas or self.budget_unit == "tokens"):
            raise ValueError("nested, select.quotas and budget_unit tokens are for static selections; remove them, or `refine`")
        weights, k = self.select.weights, self.cluster.k
        if weights is not None and k is not None and len(weights) != k:
            raise ValueError(f"select.weights: {len(weights)} weights for cluster.k {k}; expected one per cluster")
        if any(budget >= self.budget for budget in self.nested):
            raise ValueError(f"nested {self.nested}: expected budgets below budget {self.budget}")
        return self
