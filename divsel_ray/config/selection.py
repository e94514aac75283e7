"""Settings of the stages from input files to a static selection."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from divsel_ray.config.base import Section, Workers, as_list

DEFAULT_K = 256
ROWS_PER_CLUSTER = 20
"""Smaller clusters are mostly singletons, which no measure of a clustering sees through."""

Format = Literal["auto", "sharegpt", "messages", "openai", "alpaca", "self_instruct", "prompt_completion", "lima"]
ConversationPart = Literal["prompt", "input", "completion", "system", "messages"]
Allocation = Literal["proportional", "equal", "sqrt", "tempered", "water_fill", "given"]


class PoolConfig(Section):
    """From any instruction files to one clean pool."""

    data: Annotated[list[str], BeforeValidator(as_list)] = Field(
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
    tokenizer: str | None = Field(None, description="Model whose tokenizer counts tokens. Default: embed.model.")
    partition_bytes: int = Field(
        8 << 20,
        ge=1 << 10,
        description="Input bytes per pool partition, at most; a partition is one unit of work downstream.",
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
    benchmarks: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], description="Files of evaluation data; rows that share a run of `ngram` words with them go."
    )
    ngram: int = Field(13, ge=1, description="Words in a row that make an overlap with a benchmark.")


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
    n_shards: int | None = Field(
        None,
        ge=1,
        description="Partitions of the rows; actors are at most this many. Default: what the cluster has room for. Never changes "
        "a result.",
    )
    mode: Literal["auto", "memory", "streaming"] = Field(
        "auto", description="Keep rows in memory, or read them again on every pass. Never changes a result."
    )
    workers: Workers = Workers()

    def resolved(self, rows: int) -> ClusterConfig:
        """This section with `k` set for a pool of so many rows."""
        return self if self.k else self.model_copy(update={"k": max(1, min(DEFAULT_K, rows // ROWS_PER_CLUSTER))})


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
