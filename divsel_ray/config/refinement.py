"""Settings of the rounds: fine-tuning, generation, weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers
from divsel_ray.config.scoring import RewardConfig


class TrainConfig(Section):
    """Supervised fine-tuning of each round, loss on completions only."""

    model: str = Field(description="Causal language model: local folder, Hugging Face id, package:NAME.")
    method: Literal["lora", "full"] = Field("lora", description="Train adapters, or all weights.")
    mode: Literal["restart", "continue"] = Field(
        "restart", description="Each round from the base model on all rows so far, or from the last round on its new rows."
    )
    epochs: int = Field(1, ge=1, description="Passes over the rows.")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW peak; cosine decay.")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps that warm up (a ratio, never a count).")
    batch_size: int = Field(4, ge=1, description="Rows (packed: sequences) per batch and worker.")
    gradient_accumulation: int = Field(1, ge=1, description="Batches per optimiser step.")
    max_tokens: int = Field(512, ge=16, description="Prompt and completion together.")
    packing: bool = Field(False, description="Put several rows into one sequence of max_tokens; none sees another.")
    gradient_checkpointing: bool = Field(False, description="Compute activations twice instead of keeping them.")
    fsdp: bool = Field(
        False,
        description="Spread the model over the workers, for one larger than a GPU. Each first loads all of it into memory.",
    )
    lora_rank: int = Field(8, ge=1, le=512, description="Rank of the adapters, on every linear layer.")
    lora_alpha: int = Field(16, ge=1, description="Adapters are scaled by alpha / rank.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Activations, frozen weights and the saved model; what is trained is float32 meanwhile."
    )
    max_loss: float = Field(20.0, gt=0, description="A loss above this, or not a number, stops the round.")
    checkpoint_steps: int = Field(100, ge=1, description="Optimiser steps between checkpoints; a killed training goes on there.")
    max_failures: int = Field(2, ge=0, description="Lost workers that a training survives.")
    min_workers: int | None = Field(
        None, ge=1, description="Train with as few workers where more are not free (the run is then not reproducible)."
    )
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers(count=1)

    @model_validator(mode="after")
    def _workers_fit(self) -> TrainConfig:
        count, fewest = self.workers.count or 1, self.min_workers or self.workers.count or 1
        if fewest > count:
            raise ValueError(f"min_workers {fewest} is above workers.count {count}; lower the one or raise the other")
        if self.fsdp and fewest < 2:
            raise ValueError(
                f"fsdp spreads the model over several workers, but {fewest} may have to hold it; set workers.count (and "
                "min_workers, where given) to 2 or more, or fsdp to false"
            )
        return self

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> TrainConfig:
        gpus = self.workers.gpus or 0
        if gpus > 1 or (0 < gpus < 1 and (self.workers.count or 1) > 1):
            raise ValueError(
                f"workers.gpus {gpus:g}: a worker trains on one GPU, and several workers cannot share one; set 1 (a part of one "
                "only for a single worker), and workers.count for more GPUs"
            )
        return self


class GenerateConfig(Section):
    """Completions by the round's model."""

    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="transformers is the slower way for machines without vLLM."
    )
    max_new_tokens: int = Field(256, ge=1, description="Gold completions are cut to as many tokens before scoring.")
    max_prompt_tokens: int = Field(768, ge=8, description="Longest prompt.")
    long_prompts: Literal["cut", "error"] = Field(
        "cut", description="A longer prompt is cut from the left, or gives an error row instead of a completion."
    )
    chat_template: str | None = Field(
        None, description="File of a Jinja chat template, for training too. Default: the model's own."
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens with this much probability.")
    samples: int = Field(1, ge=1, description="Completions per prompt; their mean reward counts.")
    shard_size: int = Field(256, ge=1, description="Prompts per generate call; part of what makes a run reproducible.")
    dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="Weights and activations.")
    kv_cache_gib: float = Field(1.0, gt=0, description="vLLM's KV cache on a CPU; GPUs use vLLM's own rule.")
    workers: Workers = Workers(count=1)

    @model_validator(mode="after")
    def _samples_differ(self) -> GenerateConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples {self.samples} with temperature 0 would all be the same; set a temperature above 0")
        return self

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> GenerateConfig:
        if self.engine == "vllm" and self.workers.gpus not in (None, 0, 1):
            raise ValueError(f"workers.gpus {self.workers.gpus:g}: vLLM uses one whole GPU per actor; set 1, or 0 for CPUs")
        return self


class WeightsConfig(Section):
    """How gaps move the cluster weights (Yu et al. 2024, Eq. 4-6, and the rules that make them well defined)."""

    update: Literal["softmax", "paper", "memoryless"] = Field(
        "softmax",
        description="softmax: w x exp(gap / tau); paper: w x gap (Eq. 6), gaps shifted where one is not positive; memoryless: "
        "softmax without w. To see Eq. 6 as printed, set shrinkage to false and max_step to null as well.",
    )
    direction: Literal["lagging", "learned"] = Field(
        "lagging", description="Raise clusters the model has not learned, or those it has."
    )
    initial: Literal["size", "uniform"] = Field(
        "size",
        description="First weights: those of select.allocation, by size unless that is changed (the paper's text), or uniform "
        "(its Algorithm 1).",
    )
    tau: float = Field(
        1.0, gt=0, description="Temperature of the update, in pooled standard deviations of the gap; update `paper` has none."
    )
    shrinkage: bool = Field(True, description="Shrink cluster means towards the overall mean by their noise.")
    floor: float = Field(0.0, ge=0, lt=1, description="Smallest weight of a scored cluster, as a share of the uniform 1/k.")
    ceiling: float | None = Field(None, gt=1, description="Largest weight, as a multiple of the uniform weight 1/k.")
    max_step: float | None = Field(4.0, gt=1, description="Largest factor a weight moves by in one round.")
    length_control: bool = Field(False, description="Take out of the gaps what the completions' lengths explain (linear).")
    shuffled: bool = Field(False, description="Control: clusters get one another's gaps, which carries no information.")


class RefineConfig(Section):
    """Iterative refinement (Yu et al. 2024, Algorithm 1)."""

    rounds: int = Field(3, ge=1, description="N; each adds budget / N rows.")
    held_out: int = Field(16, ge=0, description="Rows never selected; their loss and gap are tracked.")
    scored: Literal["selected", "probe"] = Field(
        "selected", description="Rows that move the weights: those selected so far, or a fixed probe that never is."
    )
    probe: int = Field(4, ge=1, description="Probe rows of a cluster, for scored `probe`.")
    second: RewardConfig | None = Field(
        None, description="A second opinion on completions; a cluster's weight moves only where both agree on the direction."
    )
    static_control: bool = Field(
        False, description="Also train once on a static selection of the whole budget, to say what refinement gained."
    )
    train: TrainConfig
    generate: GenerateConfig = GenerateConfig()
    weights: WeightsConfig = WeightsConfig()

    @model_validator(mode="after")
    def _second_is_ready_made(self) -> RefineConfig:
        if self.second is not None and self.second.fit is not None:
            raise ValueError("second: name a model, a judge or a perplexity; only `reward` can be fitted on the pool")
        return self
