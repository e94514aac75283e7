"""Embeddings from a server: batches of texts, several requests at a time, within a spending limit.

Every answer is saved at once, in a file named by a hash of the request, so that a killed job pays for no request twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np

from divsel_ray.config import EmbedApiConfig, EmbedConfig
from divsel_ray.embed.api_protocols import PATHS, Answer, read_answer, write_body
from divsel_ray.embed.pooling import normalise, pool_chunks, split_tokens
from divsel_ray.errors import JobError
from divsel_ray.models.api_client import ApiClient, RefusedError, UnavailableError
from divsel_ray.models.loading import load_tokenizer, loading
from divsel_ray.models.spending import Ledger
from divsel_ray.store import digest, write_array

SECTION = "embed.api"
WINDOW = 512
"""Default tokens per chunk: the limit of Cohere's first models, and a good length for others."""
_SPENT, _REFUSED = "requests.jsonl", "refused.jsonl"
_EMPTY = "."
"""Sent in place of an empty text, which servers refuse."""
_BYTES_PER_TOKEN = 4
"""A rule of thumb for servers that do not report token counts."""


@dataclass(frozen=True)
class Batch:
    """Texts of one request, and the row of each."""

    texts: list[str]
    row_ids: list[str]

    def part(self, which: slice) -> Batch:
        """A slice of the batch."""
        return Batch(self.texts[which], self.row_ids[which])


@dataclass(frozen=True)
class Spent:
    """Numbers of requests and of tokens charged."""

    requests: int = 0
    tokens: int = 0


class Answers:
    """A folder of paid answers and of the cost of all requests; thread-safe.

    Args:
        folder: where the answers are saved; None to save none.

    Attributes:
        spent: total of all requests.
        refused: rows with a text that the server refuses, and the server's reason.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._lock, self.spent = folder, Lock(), Spent()
        self.refused: dict[str, str] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for entry in _entries(folder / _SPENT):
                with contextlib.suppress(TypeError):
                    self._count(Spent(**entry))
            self.refused = dict(_entries(folder / _REFUSED))

    def find(self, name: str) -> np.ndarray | None:
        """Load the vectors of an answered batch, or None."""
        path = self._folder / f"{name}.npy" if self._folder else None
        return np.load(path, allow_pickle=False) if path is not None and path.is_file() else None

    def keep(self, name: str, vectors: np.ndarray) -> None:
        """Save the vectors of a batch."""
        if self._folder is not None:
            write_array(self._folder / f"{name}.npy", vectors)

    def refuse(self, row_id: str, reason: str) -> None:
        """Record a row with a text that the server refuses."""
        with self._lock:
            self.refused.setdefault(row_id, reason)
            if self._folder is not None:
                with (self._folder / _REFUSED).open("a") as stream:
                    stream.write(f"\n{json.dumps([row_id, reason])}")

    def charge(self, tokens: int) -> None:
        """Record a request and its tokens."""
        with self._lock:
            self._count(Spent(1, tokens))
            if self._folder is not None:
                with (self._folder / _SPENT).open("a") as stream:
                    stream.write(f"\n{json.dumps(asdict(Spent(1, tokens)))}")

    def _count(self, new: Spent) -> None:
        self.spent = Spent(self.spent.requests + new.requests, self.spent.tokens + new.tokens)


def _entries(file: Path) -> Iterator[Any]:
    """The lines of a file as JSON; a kill may have left an incomplete line."""
    for line in file.read_text().splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


class ApiEncoder:
    """An `Encoder` that sends requests to a server.

    Long texts are split into chunks by the tokenizer of `config.model`, and the chunk vectors averaged by token count. A row
    with a text that the server refuses has no vector and is listed in `answers.refused`.

    Args:
        config: settings of the stage.
        api: the section `embed.api`.
        folder: folder of saved answers; None to save none.

    Raises:
        InputError: the key is missing, or the tokenizer cannot be loaded.
    """

    def __init__(self, config: EmbedConfig, api: EmbedApiConfig, folder: Path | None) -> None:
        self.dimension = api.dimensions or 0
        self.answers = Answers(folder)
        self._config, self._api, self._stopped, self._answered = config, api, Event(), False
        self._client = ApiClient(SECTION, api, self._stopped.wait)
        self._ledger = Ledger(SECTION, api.max_cost, cost_of(api, self.answers.spent.tokens))
        with loading(f"embed.model {config.model}"):
            self._tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)

    def encode(self, texts: Sequence[str], keys: Sequence[str]) -> np.ndarray:
        """Embed texts, see `Encoder`.

        Raises:
            InputError: the server refuses the key, the model or the address.
            JobError: the server refuses every text or no longer responds, or the spending limit is reached; answers are kept.

        Returns:
            As `Encoder`, with NaN in rows without a vector.
        """
        if not texts:
            return np.zeros((0, self.dimension), np.float16)
        window = min(self._config.window or WINDOW, self._config.max_tokens)
        cut = [cut_text(self._tokenizer, text, window, self._config.max_tokens) for text in texts]
        # Batches are cut in the order of the keys, whatever the order of the texts.
        order = sorted(range(len(texts)), key=lambda row: keys[row])
        chunks = [chunk for row in order for chunk, _ in cut[row]]
        counts = np.array([count for row in order for _, count in cut[row]])
        owners = np.array([row for row in order for _ in cut[row]])
        names = [keys[row] for row in owners]
        batches = [slice(at, at + self._api.batch_rows) for at in range(0, len(chunks), self._api.batch_rows)]
        vectors = self._ask_all([Batch(chunks[part], names[part]) for part in batches])
        self.dimension = vectors.shape[1]
        pooled = pool_chunks(vectors, counts, owners, len(texts))
        return np.where(np.isnan(pooled), np.nan, normalise(pooled)).astype(np.float16)

    def _ask_all(self, batches: list[Batch]) -> np.ndarray:
        with ThreadPoolExecutor(self._api.concurrency) as pool:
            futures = [pool.submit(self._vectors, batch) for batch in batches]
            try:
                found = [future.result() for future in futures]
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        vectors = [vector for part in found for vector in part]
        widths = {len(vector) for vector in vectors if vector is not None} or {self.dimension}
        if len(widths) > 1:
            raise JobError(f"{SECTION}: {self._api.url} returned vectors of different lengths: {sorted(widths)}")
        missing = np.full(widths.pop(), np.nan)
        return np.array([missing if vector is None else vector for vector in vectors])

    def _vectors(self, batch: Batch) -> list[np.ndarray | None]:
        """The vectors of a batch, None for refused texts; a refused batch is split, as one text makes the server refuse all."""
        try:
            return list(self._answer(batch.texts))
        except RefusedError as error:
            if len(batch.texts) == 1:
                self.answers.refuse(batch.row_ids[0], str(error))
                return [None]
            reason = error
        half = len(batch.texts) // 2
        found = [vector for part in (slice(None, half), slice(half, None)) for vector in self._vectors(batch.part(part))]
        if all(vector is None for vector in found) and not self._answered:
            self._stopped.set()
            raise JobError(f"{SECTION}: {self._api.url} refuses every text sent to it: {reason}")
        return found

    def _answer(self, batch: list[str]) -> np.ndarray:
        """The vectors of texts, saved or requested from the server."""
        name = digest({"api": self._config.identity()["api"], "texts": batch})
        kept = self.answers.find(name)
        if kept is not None:
            return kept
        try:
            vectors = self._client.try_again(lambda: self._post(batch), self._api.retries, self._stopped).vectors
        except UnavailableError as error:
            raise JobError(
                f"{SECTION}: {self._api.url} does not answer ({error}); the vectors paid for are kept: run the same command "
                "again when it does"
            ) from None
        self._answered = True
        self.answers.keep(name, vectors)
        return vectors

    def _post(self, batch: list[str]) -> Answer:
        """Send one request, charged to the ledger; tokens that the server does not report are estimated."""
        size = sum(len(text.encode()) for text in batch)
        # No tokenizer produces more tokens than bytes.
        reserved, tokens = self._ledger.reserve(cost_of(self._api, size)), 0
        try:
            body = self._client.send(PATHS[self._api.protocol], write_body(self._api, batch))
            answer = read_answer(self._api, body, len(batch))
            tokens = size // _BYTES_PER_TOKEN if answer.tokens is None else answer.tokens
            return answer
        except UnavailableError as error:
            tokens = size // _BYTES_PER_TOKEN if error.billed else 0
            raise
        finally:
            self._ledger.settle(reserved, cost_of(self._api, tokens))
            self.answers.charge(tokens)


def cost_of(api: EmbedApiConfig, tokens: float) -> float:
    """Cost of that many tokens, in the currency of `price`."""
    return tokens * api.price / 1e6


def cut_text(tokenizer: Any, text: str, window: int, max_tokens: int) -> list[tuple[str, int]]:
    """Split a text into consecutive pieces of at most `window` tokens, `max_tokens` in total; returns (piece, tokens)."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    parts = split_tokens(spans, window, max_tokens)
    return [((text[part[0][0] : part[-1][1]] if part else "") or _EMPTY, len(part)) for part in parts]
