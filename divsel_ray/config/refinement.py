"""Settings of the refinement rounds: fine-tuning, generation, cluster weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers
from divsel_ray.config.scoring import RewardConfig


class TrainConfig(Section):
    """Supervised fine-tuning in each round; the loss is on completions only."""

    model: str = Field(description="Causal language model: local folder, Hugging Face id or package:NAME.")
    method: Literal["lora", "full"] = Field("lora", description="lora: train LoRA adapters; full: train all weights.")
    mode: Literal["restart", "continue"] = Field(
        "restart",
        description="restart: train the base model on all rows so far in every round; continue: train the last round's model on "
        "the new rows.",
    )
    epochs: int = Field(1, ge=1, description="Passes over the rows.")
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate of AdamW; cosine decay.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Fraction of the steps used for warm-up.")
    batch_size: int = Field(4, ge=1, description="Rows (with packing: sequences) per batch and worker.")
    gradient_accumulation: int = Field(1, ge=1, description="Batches per optimiser step.")
    max_tokens: int = Field(512, ge=16, description="Maximum tokens of prompt and completion together.")
    packing: bool = Field(
        False, description="Pack several rows into one sequence of max_tokens; they do not attend to each other."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations instead of storing them, to save memory.")
    fsdp: bool = Field(
        False,
        description="Shard the model over the workers (FSDP), for models larger than one GPU. Each worker first loads the full "
        "model into memory.",
    )
    lora_rank: int = Field(8, ge=1, le=512, description="Rank of the adapters, on every linear layer.")
    lora_alpha: int = Field(16, ge=1, description="Adapters are scaled by alpha / rank.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Data type of activations, frozen weights and the saved model; trained weights are float32."
    )
    max_loss: float = Field(20.0, gt=0, description="Stop the round if the loss exceeds this or is not a number.")
    checkpoint_steps: int = Field(
        100, ge=1, description="Optimiser steps between checkpoints, from which a killed training resumes."
    )
    max_failures: int = Field(2, ge=0, description="Number of lost workers that a training survives.")
    min_workers: int | None = Field(
        None, ge=1, description="Train with as few as this many workers if no more are free; the run is then not reproducible."
    )
    trust_remote_code: bool = Field(False, description="Allow running Python code that comes with the model.")
    workers: Workers = Workers(count=1)

    @model_validator(mode="after")
    def _workers_fit(self) -> TrainConfig:
        count, fewest = self.workers.count or 1, self.min_workers or self.workers.count or 1
        if fewest > count:
            raise ValueError(f"min_workers {fewest}: exceeds workers.count {count}; lower min_workers or raise workers.count")
        if self.fsdp and fewest < 2:
            raise ValueError(
                f"fsdp: shards the model over several workers, but it may have to run on {fewest}; set workers.count (and "
                "min_workers, if given) to 2 or more, or fsdp to false"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> TrainConfig:
        gpus = self.workers.gpus or 0
        if gpus > 1 or (0 < gpus < 1 and (self.workers.count or 1) > 1):
            raise ValueError(
                f"workers.gpus {gpus:g}: a worker trains on one GPU, and several workers cannot share one; set 1 (or a fraction, "
                "with a single worker), and raise workers.count to use more GPUs"
            )
        return self


class GenerateConfig(Section):
    """Generation of completions by the round's model."""

    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="Library that generates; transformers is slower, for machines without vLLM."
    )
    max_new_tokens: int = Field(
        256, ge=1, description="Maximum tokens of a completion; gold completions are cut to the same length before scoring."
    )
    max_prompt_tokens: int = Field(768, ge=8, description="Maximum tokens of a prompt.")
    long_prompts: Literal["cut", "error"] = Field(
        "cut", description="Treatment of longer prompts. cut: truncate from the left; error: an error row, no completion."
    )
    chat_template: str | None = Field(
        None, description="File with a Jinja chat template, used in training too. Default: the model's own."
    )
    temperature: float = Field(0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: probability mass of the tokens sampled from.")
    samples: int = Field(1, ge=1, description="Completions per prompt; their mean reward is used.")
    shard_size: int = Field(256, ge=1, description="Prompts per generate call; changing it can change the completions.")
    dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="Data type of weights and activations.")
    kv_cache_gib: float = Field(1.0, gt=0, description="Size of vLLM's KV cache on a CPU, in GiB; on GPUs vLLM decides.")
    workers: Workers = Workers(count=1)

    @model_validator(mode="after")
    def _samples_differ(self) -> GenerateConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples {self.samples}: would be identical at temperature 0; set a temperature above 0")
        return self

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> GenerateConfig:
        if self.engine == "vllm" and self.workers.gpus not in (None, 0, 1):
            raise ValueError(f"workers.gpus {self.workers.gpus:g}: vLLM uses one whole GPU per actor; set 1, or 0 to use CPUs")
        return self


class WeightsConfig(Section):
    """How gaps move the cluster weights (Yu et al. 2024, Eq. 4-6, and the rules that make them well defined)."""

    update: Literal["softmax", "paper", "memoryless"] = Field(
        "softmax",
        description="softmax: w x exp(gap / tau); paper: w x gap (Eq. 6), with gaps shifted to be positive if any is not; "
        "memoryless: softmax without w. For Eq. 6 as printed, also set shrinkage to false and max_step to null.",
    )
    direction: Literal["lagging", "learned"] = Field(
        "lagging",
        description="lagging: raise the weights of clusters that the model has not learned; learned: of those that it has.",
    )
    initial: Literal["size", "uniform"] = Field(
        "size",
        description="Weights of the first round. size: those of select.allocation, by default proportional to size (the paper's "
        "text); uniform (the paper's Algorithm 1).",
    )
    tau: float = Field(
        1.0, gt=0, description="Temperature of the update, in pooled standard deviations of the gap; unused by update `paper`."
    )
    shrinkage: bool = Field(
        True, description="Shrink the cluster means of the gap towards the overall mean, according to their noise."
    )
    floor: float = Field(
        0.0, ge=0, lt=1, description="Smallest weight of a scored cluster, as a fraction of the uniform weight 1/k."
    )
    ceiling: float | None = Field(None, gt=1, description="Largest weight, as a multiple of the uniform weight 1/k.")
    max_step: float | None = Field(4.0, gt=1, description="Largest factor by which a weight changes in one round.")
    length_control: bool = Field(False, description="Remove the linear effect of the completions' lengths from the gaps.")
    shuffled: bool = Field(
        False, description="Control experiment: permute the gaps over the clusters, which removes the feedback."
    )


class RefineConfig(Section):
    """Iterative refinement (Yu et al. 2024, Algorithm 1)."""

    rounds: int = Field(3, ge=1, description="Number of rounds N; each adds budget / N rows.")
    held_out: int = Field(16, ge=0, description="Number of rows that are never selected; their loss and gap are tracked.")
    scored: Literal["selected", "probe"] = Field(
        "selected", description="Rows that update the weights. selected: all selected so far; probe: fixed, never selected rows."
    )
    probe: int = Field(4, ge=1, description="Probe rows per cluster, for scored `probe`.")
    second: RewardConfig | None = Field(
        None, description="A second scorer of completions; a cluster's weight changes only if both agree on the direction."
    )
    static_control: bool = Field(
        False, description="Also train once on a static selection of the full budget, to measure the benefit of refinement."
    )
    train: TrainConfig
    generate: GenerateConfig = GenerateConfig()
    weights: WeightsConfig = WeightsConfig()

    @model_validator(mode="after")
    def _second_is_ready_made(self) -> RefineConfig:
        if self.second is not None and self.second.fit is not None:
            raise ValueError("second: expected model, judge or perplexity; only `reward` can be fitted on the pool")
        return self
