"""Which scorer a stage runs: a small value that travels to the workers, which load the model there."""

from __future__ import annotations

from dataclasses import dataclass

from divsel_ray.config import QualityConfig, RewardConfig
from divsel_ray.errors import InputError
from divsel_ray.score.scorer import Scorer

KINDS = ("reward", "ifd", "column", "given")


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer's kind and settings.

    Attributes:
        kind: reward model, instruction-following difficulty, a number that the pool already holds, or a file of scores.
        model: local folder, Hugging Face id or package:NAME; the column's name for `column`, the file for `given`.
        max_tokens: prompt and completion together.
        batch_tokens: padded tokens per batch.
        trust_remote_code: let the model's own Python code run.
    """

    kind: str
    model: str
    max_tokens: int = 512
    batch_tokens: int = 4096
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"scorer {self.kind!r}: expected one of {', '.join(KINDS)}")

    @classmethod
    def of_quality(cls, config: QualityConfig) -> ScorerSpec:
        """The scorer of a source that names its model or column.

        Raises:
            InputError: the source is `none` or the bare `reward`, whose model is named elsewhere.
        """
        kind, _, name = config.source.partition(":")
        if not name:
            raise InputError(f"quality.source {config.source!r}: names no model to score with; expected reward:MODEL or the like")
        return cls(kind, name, config.max_tokens, config.batch_tokens, config.trust_remote_code)

    @classmethod
    def of_reward(cls, config: RewardConfig, model: str) -> ScorerSpec:
        """The reward model, named or fitted, with the limits of its section."""
        return cls("reward", model, config.max_tokens, config.batch_tokens, config.trust_remote_code)

    @property
    def computed(self) -> bool:
        """Whether a model computes the scores."""
        return self.kind in ("reward", "ifd")

    def load(self) -> Scorer:
        """Load the model on this machine (`column` and `given` have none).

        Raises:
            InputError: the model cannot be loaded or is of the wrong kind.
        """
        from divsel_ray.score.ifd import InstructionFollowingDifficulty
        from divsel_ray.score.reward_model import RewardModel

        settings = (self.model, self.max_tokens, self.batch_tokens, self.trust_remote_code)
        return InstructionFollowingDifficulty(*settings) if self.kind == "ifd" else RewardModel(*settings)
