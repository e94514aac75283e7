"""The scorer of a stage as a small value that is sent to the workers, which load the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from divsel_ray.config import JudgeConfig, QualityConfig, RewardConfig
from divsel_ray.errors import InputError
from divsel_ray.models.references import fingerprint
from divsel_ray.score.deita import COMPLEXITY_MODEL, QUALITY_MODEL
from divsel_ray.score.judge import Judge, read_template
from divsel_ray.score.scorer import Scorer
from divsel_ray.store import digest

KINDS = ("reward", "ifd", "perplexity", "log_perplexity", "deita", "judge", "column", "given")
_MODELS = ("reward", "ifd", "perplexity", "log_perplexity", "deita")
_UNSEEN = {"key_variable", "concurrency", "retries", "timeout_s", "prompt_price", "output_price", "max_cost", "template"}
"""Settings of a judge that change no rating (for the template, its text matters)."""


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer's kind and settings.

    Attributes:
        kind: reward model, instruction-following difficulty, minus log perplexity (for a quality), log perplexity (for a
            reward, Eq. 7), DEITA's complexity x quality, a judge, a column of the pool, or a file of scores.
        model: local folder, Hugging Face id or package:NAME, two with a comma for `deita`; the column's name for `column`, the
            file for `given`, the model's name on the server for `judge`.
        max_tokens: limit for prompt and completion together.
        batch_tokens: padded tokens per batch.
        trust_remote_code: let the model's own Python code run.
        backend: library that runs a reward model: transformers or vllm.
        judge: settings of the judge; they name the key's variable, never the key.
        template: the judge's question.
    """

    kind: str
    model: str
    max_tokens: int = 512
    batch_tokens: int = 4096
    trust_remote_code: bool = False
    backend: str = "transformers"
    judge: JudgeConfig | None = None
    template: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"scorer {self.kind!r}: expected one of {', '.join(KINDS)}")

    @classmethod
    def of_quality(cls, config: QualityConfig) -> ScorerSpec:
        """The scorer of a quality source that names its model or column, or is `deita` or `judge`.

        Raises:
            InputError: the source is `none` or the bare `reward`, whose model is named elsewhere, or the judge's template
                cannot be read.
        """
        kind, _, name = config.source.partition(":")
        limits = (config.max_tokens, config.batch_tokens, config.trust_remote_code)
        if config.judge is not None:
            return cls("judge", config.judge.model, *limits, judge=config.judge, template=read_template(config.judge))
        if kind == "deita":
            name = ",".join(model.strip() for model in (name or f"{COMPLEXITY_MODEL},{QUALITY_MODEL}").split(","))
        if not name:
            raise InputError(f"quality.source {config.source!r}: names no model to score with; expected e.g. reward:MODEL")
        return cls(kind, name, *limits)

    @classmethod
    def of_reward(cls, config: RewardConfig, model: str) -> ScorerSpec:
        """The scorer of completions, with the limits of its section.

        Args:
            config: the section.
            model: reference from `stage.reward_reference`: the named or fitted reward model, language model or judge.

        Raises:
            InputError: the judge's template cannot be read.
        """
        limits = (config.max_tokens, config.batch_tokens, config.trust_remote_code)
        if config.judge is not None:
            return cls("judge", model, *limits, judge=config.judge, template=read_template(config.judge))
        if config.perplexity is not None:
            return cls("log_perplexity", model, *limits)
        return cls("reward", model, *limits, backend=config.backend)

    def as_quality(self) -> ScorerSpec:
        """The same scorer with higher for better: the sign of log perplexity, which Eq. 7 uses unchanged, is reversed."""
        return replace(self, kind="perplexity") if self.kind == "log_perplexity" else self

    @property
    def computed(self) -> bool:
        """Whether a model on a worker computes the scores."""
        return self.kind in _MODELS

    @property
    def limits(self) -> dict[str, int]:
        """The limits that the scores depend on; a judge has no batches, and scores from the pool or a file no limits."""
        if self.judge is not None:
            return {"max_tokens": self.max_tokens}
        return {"max_tokens": self.max_tokens, "batch_tokens": self.batch_tokens} if self.computed else {}

    def identity(self) -> list[str]:
        """What identifies the scores besides the limits: the content of models, and the settings and question of a judge."""
        if self.judge is not None:
            return ["judge", digest([self.judge.model_dump(mode="json", exclude=_UNSEEN), self.template])]
        if not self.computed:
            return []
        models = self.model.split(",") if self.kind == "deita" else [self.model]
        names = [name for name in (self.kind, self.backend) if name not in ("reward", "ifd", "transformers")]
        return [*names, *(fingerprint(model) for model in models)]

    def load(self, threads: int | None = None, journal: Path | None = None) -> Scorer:
        """Load the model on this machine, or create the client of the judge (`column` and `given` have neither).

        Args:
            threads: compute threads of this process; None to leave them unchanged.
            journal: folder of the judge's ratings, see `Judge`.

        Raises:
            InputError: the model cannot be loaded or is of the wrong kind, or the judge's key is missing.
        """
        if self.judge is not None:
            return Judge(self.judge, self.template, self.max_tokens, journal)
        import torch

        from divsel_ray.score.deita import Deita
        from divsel_ray.score.ifd import InstructionFollowingDifficulty
        from divsel_ray.score.perplexity import Perplexity
        from divsel_ray.score.reward_model import RewardModel
        from divsel_ray.score.vllm_reward import VllmRewardModel

        if threads is not None:
            torch.set_num_threads(threads)
        limits = (self.max_tokens, self.batch_tokens, self.trust_remote_code)
        if self.kind == "deita":
            complexity, quality = self.model.split(",")
            return Deita(complexity, quality, *limits)
        if self.kind in ("perplexity", "log_perplexity"):
            return Perplexity(1.0 if self.kind == "log_perplexity" else -1.0, self.model, *limits)
        if self.kind == "ifd":
            return InstructionFollowingDifficulty(self.model, *limits)
        return (VllmRewardModel if self.backend == "vllm" else RewardModel)(self.model, *limits)
