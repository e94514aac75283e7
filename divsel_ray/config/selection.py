"""Settings of the stages from the input files to a static selection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from divsel_ray.config.base import Section, Workers, as_list

DEFAULT_K = 256
ROWS_PER_CLUSTER = 20
"""With fewer, many clusters are singletons, which make every measure of clustering quality misleading."""

Format = Literal["auto", "sharegpt", "messages", "openai", "alpaca", "self_instruct", "prompt_completion", "lima"]
ConversationPart = Literal["prompt", "input", "completion", "system", "messages"]
Allocation = Literal["proportional", "equal", "sqrt", "tempered", "water_fill", "given"]


class PoolConfig(Section):
    """The pool: instruction files of any format, read into one clean dataset."""

    data: Annotated[list[str], BeforeValidator(as_list)] = Field(
        description="Input: files, folders, globs, s3:// or gs:// URLs, hf:OWNER/NAME for a Hugging Face dataset, or "
        "package:NAME for data inside a Python package."
    )
    format: Format = Field("auto", description="Row format; auto detects it from the first rows and reports it.")
    columns: dict[ConversationPart, str] = Field(
        {}, description="Row keys of prompt, input, completion, system or messages, for formats that are not supported."
    )
    max_chars: int = Field(1_000_000, ge=1, description="Maximum characters of a conversation; longer ones are bad rows.")
    turns: Literal["all", "first"] = Field("all", description="Keep whole conversations, or only the first exchange.")
    sample: int | None = Field(None, ge=1, description="Use only this many rows, chosen by a hash of seed and row id.")
    max_bad_rows: int | None = Field(
        None, ge=0, description="Bad rows tolerated before the job stops. Default: 100 or 1 %, whichever is more."
    )
    score_column: str | None = Field(None, description="Numeric input column to keep as `score`, for quality column:NAME.")
    tokenizer: str | None = Field(None, description="Model whose tokenizer counts tokens. Default: embed.model.")
    partition_bytes: int = Field(
        8 << 20,
        ge=1 << 10,
        description="Maximum input bytes per pool partition; a partition is one unit of work in later stages.",
    )


class CleanConfig(Section):
    """Removal of rows from the pool; removed rows are counted and kept with the reason. Exact duplicates always go."""

    min_tokens: int | None = Field(None, ge=1, description="Remove rows with fewer tokens.")
    max_tokens: int | None = Field(None, ge=1, description="Remove rows with more tokens.")
    near_duplicates: float | None = Field(
        None, gt=0, le=1, description="Keep one of several rows whose words are this similar (Jaccard, by MinHash); usually 0.8."
    )
    semantic_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Keep one of several rows of a cluster whose vectors are this similar (cosine); usually 0.95.",
    )
    benchmarks: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], description="Files of evaluation data; remove rows that share a sequence of `ngram` words with them."
    )
    ngram: int = Field(13, ge=1, description="Number of consecutive words that count as an overlap with a benchmark.")


class ClusterConfig(Section):
    """k-means clustering."""

    k: int | None = Field(None, ge=1, description="Number of clusters. Default: 256, or the pool's rows / 20 if that is less.")
    metric: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="Distance; cosine scales rows and centroids to unit length (spherical k-means)."
    )
    init: Literal["k-means++", "k-means||", "random"] = Field(
        "k-means++", description="Initialisation of the centroids; k-means|| needs only a few passes over the rows."
    )
    n_init: int = Field(1, ge=1, description="Number of initialisations; the result with the lowest inertia is kept.")
    max_iter: int = Field(50, ge=1, description="Maximum number of iterations.")
    tol: float = Field(1e-4, ge=0, description="Stop when the squared centroid movement falls below tol x mean variance.")
    progressive: bool = Field(False, description="Run the first iterations on growing samples of the rows, the last ones on all.")
    fit_rows: int | None = Field(
        None, ge=1, description="Fit on a sample of about this many rows, then assign all. Default, and if less than k: all rows."
    )
    size_cap: float | None = Field(None, ge=1, description="Maximum cluster size, as a multiple of the mean. Default: no limit.")
    n_shards: int | None = Field(
        None,
        ge=1,
        description="Number of shards of the rows, and maximum number of actors. Default: as many as fit the cluster. Does not "
        "affect the result.",
    )
    mode: Literal["auto", "memory", "streaming"] = Field(
        "auto", description="Keep rows in memory, or read them from disk on every pass. Does not affect the result."
    )
    workers: Workers = Workers()

    def resolved(self, rows: int) -> ClusterConfig:
        """This section with `k` resolved for a pool of `rows` rows."""
        return self if self.k else self.model_copy(update={"k": max(1, min(DEFAULT_K, rows // ROWS_PER_CLUSTER))})


class SelectConfig(Section):
    """Selection of rows: the sampler, its odds, and the budgets of the clusters."""

    sampler: str = Field("kmq", description="kmq, kmrandom, kmclosest, or another sampler listed by `divsel samplers`.")
    temperature: float = Field(1.0, gt=0, description="T of softmax((q - max q) / (T x pooled sd)) within a cluster.")
    odds: Literal["softmax", "linear", "power", "rank"] = Field(
        "softmax", description="How the odds grow with quality q: softmax(q / T), q, q to the power 1 / T, or rank of q."
    )
    missing: Literal["mean", "drop"] = Field(
        "mean", description="Rows without quality. mean: use the cluster's mean quality; drop: never select them."
    )
    allocation: Allocation = Field(
        "proportional", description="How a static selection's budget (or the first round's weight) is split over the clusters."
    )
    exponent: float = Field(
        0.5, ge=0, le=1, description="Exponent of the cluster sizes, for allocation `tempered`: 0 is equal, 1 is proportional."
    )
    weights: list[float] | None = Field(None, description="One weight per cluster, for allocation `given`.")
    min_one: bool = Field(False, description="Select at least one row from every cluster, as far as the budget allows.")
    include: str | None = Field(None, description="File of row ids that are always selected, whatever the sampler.")
    exclude: str | None = Field(None, description="File of row ids that are never selected.")
    quotas: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="Exact number of rows (or tokens) per source; the rest of the budget comes from the other sources."
    )
    neighbours: int = Field(64, ge=1, description="facility, qdit: neighbours per row in the similarity graph.")
    threshold: float = Field(0.9, gt=0, le=1, description="deita: skip rows this similar (cosine) to a selected row.")
    quality_share: float = Field(0.7, ge=0, le=1, description="qdit: weight of quality relative to coverage.")
    concavity: float = Field(0.8, gt=0, lt=1, description="mig: the information of x in a cluster is x to this power.")

    @model_validator(mode="after")
    def _weights_are_given(self) -> SelectConfig:
        if (self.allocation == "given") != (self.weights is not None):
            raise ValueError("allocation `given` needs `weights` (one per cluster), and `weights` needs allocation `given`")
        if self.weights is not None and not (min(self.weights, default=0) >= 0 < sum(self.weights) < float("inf")):
            raise ValueError("weights: expected finite, non-negative numbers, not all zero")
        return self
