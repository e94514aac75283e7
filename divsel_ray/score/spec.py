"""Which scorer a stage runs: a small value that travels to the workers, which load the model there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from divsel_ray.config import QualityConfig, RewardConfig
from divsel_ray.errors import InputError
from divsel_ray.score.scorer import Scorer


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer's kind and settings.

    Attributes:
        kind: reward model, instruction-following difficulty, or a number that the pool already holds.
        model: local folder, Hugging Face id or package:NAME; the column's name for `column`.
        max_tokens: prompt and completion together.
        batch_tokens: padded tokens per batch.
        trust_remote_code: let the model's own Python code run.
    """

    kind: Literal["reward", "ifd", "column"]
    model: str
    max_tokens: int = 512
    batch_tokens: int = 4096
    trust_remote_code: bool = False

    @classmethod
    def of_quality(cls, config: QualityConfig, reward_model: str | None = None) -> ScorerSpec:
        """The scorer of a quality source; `reward_model` is what the bare source `reward` means.

        Raises:
            InputError: the source is `none`, or `reward` where there is no reward model.
        """
        kind, _, name = config.source.partition(":")
        model = name or (reward_model if kind == "reward" else None)
        if not model:
            raise InputError(f"quality.source {config.source!r}: no model to score with; give reward:MODEL or a reward section")
        return cls(kind, model, config.max_tokens, config.batch_tokens, config.trust_remote_code)  # type: ignore[arg-type]

    @classmethod
    def of_reward(cls, config: RewardConfig, model: str) -> ScorerSpec:
        """The reward model (named or fitted) that judges completions in refinement."""
        return cls("reward", model, config.max_tokens, config.batch_tokens, config.trust_remote_code)

    def load(self) -> Scorer:
        """Load the model on this machine.

        Raises:
            InputError: the model cannot be loaded or is of the wrong kind.
        """
        from divsel_ray.score.ifd import InstructionFollowingDifficulty
        from divsel_ray.score.reward_model import RewardModel

        scorers = {"reward": RewardModel, "ifd": InstructionFollowingDifficulty}
        return scorers[self.kind](self.model, self.max_tokens, self.batch_tokens, self.trust_remote_code)
