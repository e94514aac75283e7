"""The configuration: one pydantic model per stage, every field described, unknown keys refused.

A stage receives its own section whole. The section is also what the run store hashes: change a field and the
stages that depend on it are made again, and no others. How many workers run a stage is in `Workers`, which is left
out of that hash where it never changes a result: everywhere but in training and, as to CPUs per worker, in generation.
"""

from divsel_ray.config.base import Section, Workers
from divsel_ray.config.embedding import EmbedApiConfig, EmbedConfig
from divsel_ray.config.evaluation import EvaluateConfig
from divsel_ray.config.job import Config, PricesConfig
from divsel_ray.config.refinement import GenerateConfig, RefineConfig, TrainConfig, WeightsConfig
from divsel_ray.config.scoring import FitRewardConfig, JudgeConfig, QualityConfig, RewardConfig
from divsel_ray.config.selection import (
    DEFAULT_K,
    ROWS_PER_CLUSTER,
    CleanConfig,
    ClusterConfig,
    ConversationPart,
    PoolConfig,
    SelectConfig,
)

__all__ = [
    "DEFAULT_K",
    "ROWS_PER_CLUSTER",
    "CleanConfig",
    "ClusterConfig",
    "Config",
    "ConversationPart",
    "EmbedApiConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "FitRewardConfig",
    "GenerateConfig",
    "JudgeConfig",
    "PoolConfig",
    "PricesConfig",
    "QualityConfig",
    "RefineConfig",
    "RewardConfig",
    "Section",
    "SelectConfig",
    "TrainConfig",
    "WeightsConfig",
    "Workers",
]
