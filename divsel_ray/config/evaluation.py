"""Settings of evaluation: how models are loaded and prompted, and the resources they run on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers


class EvaluateConfig(Section):
    """How models are evaluated; for a run folder, `max_tokens` and `chat_template` are those of the run."""

    max_tokens: int = Field(
        512, ge=16, description="Tokens of a held-out row's prompt and completion together, as in refine.train.max_tokens."
    )
    batch_tokens: int = Field(1024, ge=16, description="Padded tokens per batch of held-out rows.")
    chat_template: str | None = Field(None, description="File with a Jinja chat template. Default: the model's own.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Data type of weights and activations.")
    fewshot: int | None = Field(
        None, ge=0, description="Examples before each question of a task. Default: the task's own number."
    )
    chat: bool = Field(False, description="Prompt tasks and HumanEval through the chat template instead of as plain text.")
    batch_size: int = Field(4, ge=1, description="Questions of a task per batch; all their logits are in memory at once.")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="HumanEval: library that generates.")
    samples: int = Field(1, ge=1, description="HumanEval: completions per problem; 10 or more also give pass@10.")
    temperature: float = Field(0.0, ge=0, description="HumanEval: sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="HumanEval: nucleus sampling: probability mass of the tokens sampled from.")
    max_new_tokens: int = Field(512, ge=1, description="HumanEval: maximum tokens of a completion.")
    program_seconds: float = Field(10.0, gt=0, description="HumanEval: time limit of a program in seconds.")
    seed: int = Field(0, ge=0, description="HumanEval: seed of the samples.")
    trust_remote_code: bool = Field(False, description="Allow running Python code that comes with the model.")
    time_limit_s: float = Field(
        6 * 3600, gt=0, description="Time limit in seconds of one measurement of one model, including waiting for resources."
    )
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluateConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples {self.samples}: would be identical at temperature 0; set a temperature above 0")
        return self
