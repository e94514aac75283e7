"""The configuration: one pydantic model per stage; every field is described and unknown keys are refused.

A stage receives its entire section, and the run store hashes that section: changing a field recomputes the stages that
depend on it, and no others. `Workers`, which says how many workers run a stage, is excluded from the hash wherever it
cannot change a result, that is, everywhere except in training and, for the CPUs per worker, in generation.
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
