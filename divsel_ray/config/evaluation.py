"""Settings of evaluation: how models are loaded, asked and given their place on the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers


class EvaluateConfig(Section):
    """How models are measured; of a run folder, `max_tokens` and `chat_template` are the run's own."""

    max_tokens: int = Field(
        512, ge=16, description="Prompt and completion of a held-out row together, as refine.train.max_tokens."
    )
    batch_tokens: int = Field(1024, ge=16, description="Padded tokens per batch of held-out rows.")
    chat_template: str | None = Field(None, description="File of a Jinja chat template. Default: the model's own.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Weights and activations.")
    fewshot: int | None = Field(
        None, ge=0, description="Examples before each question of a task. Default: the task's own number."
    )
    chat: bool = Field(False, description="Ask tasks and HumanEval in the chat template instead of as plain text.")
    batch_size: int = Field(4, ge=1, description="Questions of a task per batch; their logits are in memory at once.")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="HumanEval: what generates.")
    samples: int = Field(1, ge=1, description="HumanEval: completions per problem; 10 or more also give pass@10.")
    temperature: float = Field(0.0, ge=0, description="HumanEval: 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="HumanEval: sample from the likeliest tokens with this much probability.")
    max_new_tokens: int = Field(512, ge=1, description="HumanEval: tokens of a completion.")
    program_seconds: float = Field(10.0, gt=0, description="HumanEval: running time of a program.")
    seed: int = Field(0, ge=0, description="HumanEval: of the samples.")
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    time_limit_s: float = Field(
        6 * 3600, gt=0, description="Seconds that one measurement of one model may take, waiting for a place included."
    )
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluateConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples {self.samples} with temperature 0 would all be the same; set a temperature above 0")
        return self
