"""A language model behind a server as judge: it rates completions within a spending limit.

Every rating is saved at once, so that a killed job pays for no rating twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from threading import Event, Lock
from typing import TextIO

import numpy as np

from divsel_ray.config import JudgeConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.models.api_client import RefusedError, UnavailableError
from divsel_ray.models.spending import Ledger
from divsel_ray.score.chat_client import Answer, ChatClient
from divsel_ray.score.encoding import prompt_with_roles
from divsel_ray.score.scorer import Exchange
from divsel_ray.store import digest

_BYTES_PER_TOKEN = 4
"""A rule of thumb for estimates, as the server's tokenizer is not available."""
_CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for cutting long texts."""
_ENVELOPE_TOKENS = 64
"""Tokens that a server's own chat template may add."""
_FAILURES = 20
"""Consecutive rows without an answer, or first rows all without a rating, after which the judge stops with an error."""
_SPENT = ("requests", "prompt_tokens", "output_tokens")
_PLACE = re.compile(r"\{(prompt|completion|lowest|highest)\}")
_RATING = re.compile(r"(?:Rating: *)?([-+]?\d+(?:\.\d+)?)(?: ?/ ?(\d+(?:\.\d+)?))?\.?", re.IGNORECASE)
_MARKUP = re.compile(r"[*_`]")


@dataclass(frozen=True)
class Rating:
    """A row's rating and its cost.

    Attributes:
        row_id: id of the row.
        rating: the rating; None if the answers contained none.
        requests, prompt_tokens, output_tokens: totals over all requests for the row.
        problem: why the server did not answer; empty if it did.
    """

    row_id: str
    rating: float | None
    requests: int
    prompt_tokens: int
    output_tokens: int
    problem: str = ""


def read_template(config: JudgeConfig) -> str:
    """Read the template of the judge's question.

    Raises:
        InputError: the file is missing, or lacks {prompt} or {completion}.
    """
    if config.template is None:
        return (files("divsel_ray.score") / "judge_template.txt").read_text(encoding="utf-8")
    path = Path(config.template).expanduser()
    if not path.is_file():
        raise InputError(f"judge.template: {config.template}: no such file")
    text = path.read_text(encoding="utf-8")
    missing = [place for place in ("{prompt}", "{completion}") if place not in text]
    if missing:
        raise InputError(f"judge.template: {config.template}: lacks the placeholder {missing[0]}")
    return text


def write_question(template: str, exchange: Exchange, config: JudgeConfig, max_tokens: int) -> str:
    """Fill the template with a row; a long row loses the start of its prompt and the end of its completion."""
    room = max_tokens * _CHARACTERS_PER_TOKEN
    prompt = prompt_with_roles(exchange.messages)
    completion = exchange.completion[: max(room // 2, room - len(prompt))]
    prompt = prompt[max(0, len(prompt) - (room - len(completion))) :]
    values = {"prompt": prompt, "completion": completion, "lowest": f"{config.lowest:g}", "highest": f"{config.highest:g}"}
    # In one pass: a placeholder inside a row's own text must not be filled.
    return _PLACE.sub(lambda place: values[place[1]], template)


def parse_rating(text: str, config: JudgeConfig) -> float | None:
    """Read the rating from the last line of an answer, `Rating: NUMBER` or NUMBER alone; None if missing or out of range.

    The number may have Markdown emphasis (e.g. bold) and be followed by `/ HIGHEST`.
    """
    lines = text.strip().splitlines()
    found = _RATING.fullmatch(_MARKUP.sub("", lines[-1]).strip()) if lines else None
    value = float(found[1]) if found and float(found[2] or config.highest) == config.highest else math.nan
    return value if config.lowest <= value <= config.highest else None


def cost_of(config: JudgeConfig, prompt_tokens: float, output_tokens: float) -> float:
    """Cost of the tokens, in the currency of the prices."""
    return (prompt_tokens * config.prompt_price + output_tokens * config.output_price) / 1e6


def worst_cost(config: JudgeConfig, question: str) -> float:
    """Highest possible cost of a request: a token for each byte, and the longest answer."""
    return cost_of(config, len(question.encode()) + _ENVELOPE_TOKENS, config.max_output_tokens)


def estimated_tokens(question: str) -> int:
    """Estimate the prompt tokens of a question from its bytes."""
    return math.ceil(len(question.encode()) / _BYTES_PER_TOKEN)


@dataclass
class _Account:
    """Requests and tokens of one row so far."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


class Judge:
    """Rates exchanges by asking a server, several at a time; a `Scorer`.

    Args:
        config: settings of the judge.
        template: template from `read_template`.
        max_tokens: limit for prompt and completion together, at four characters per token.
        journal: folder of all paid ratings, with a file for each set of exchanges; None to save none.

    Raises:
        InputError: the key is missing.
    """

    def __init__(self, config: JudgeConfig, template: str, max_tokens: int, journal: Path | None = None) -> None:
        self.problem = ""
        self.signals: dict[str, np.ndarray] = {}
        self._config, self._template, self._max_tokens, self._journal = config, template, max_tokens, journal
        self._ledger, self._lock, self._stopped = Ledger("judge", config.max_cost, spent_before(config, journal)), Lock(), Event()
        self._client, self._failures = ChatClient(config, self._stopped.wait), 0
        self._answered = self._rated = False
        self._unrated = 0

    def score(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        """Ratings (n,) float64; see `Scorer`. `signals` are requests, prompt_tokens, output_tokens and failed (0 or 1).

        Raises:
            InputError: the server refuses the key, the model, the address or every request, or no answer contains a rating.
            JobError: the spending limit is reached, or the server no longer responds; finished ratings are kept.
        """
        ratings = self._rate_all({row.row_id: self.question(row) for row in exchanges})
        found = [ratings[row.row_id] for row in exchanges]
        unrated = [one for one in found if one.rating is None]
        if unrated:
            self.problem = self.problem or f"row {unrated[0].row_id}: {unrated[0].problem or 'no rating in the answer'}"
        self.signals = {name: np.array([getattr(one, name) for one in found], np.int64) for name in _SPENT}
        self.signals["failed"] = np.array([bool(one.problem) for one in found], np.int64)
        return np.array([np.nan if one.rating is None else one.rating for one in found], dtype=np.float64)

    def question(self, exchange: Exchange) -> str:
        """The question to the judge about a row."""
        return write_question(self._template, exchange, self._config, self._max_tokens)

    def _rate_all(self, questions: Mapping[str, str]) -> dict[str, Rating]:
        journal = Journal(None if self._journal is None else journal_file(self._journal, questions))
        due = [row_id for row_id in questions if journal.is_due(row_id)]
        self._rated |= any(one.rating is not None for one in journal.ratings.values())
        with journal, ThreadPoolExecutor(self._config.concurrency) as pool:
            futures = [pool.submit(self._rate, row_id, questions[row_id], journal) for row_id in due]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return journal.ratings

    def _rate(self, row_id: str, question: str, journal: Journal) -> None:
        """Ask, once more if the answer contains no rating, and record the result."""
        if self._stopped.is_set():
            return
        account, rating, problem, said = _Account(), None, "unfinished", ""
        try:
            for _ in range(2):
                said = self._ask(question, account).text
                rating = parse_rating(said, self._config)
                self._failures, self._answered = 0, True
                if rating is not None:
                    break
            problem = ""
        except (RefusedError, UnavailableError) as error:
            problem = str(error) or "no answer"
        finally:
            journal.add(Rating(row_id, rating, **asdict(account), problem=problem))
        if problem:
            self._count_failure(problem)
        else:
            self._count_rating(rating, said)

    def _ask(self, question: str, account: _Account) -> Answer:
        """Ask the server, with retries; adds the cost to the account.

        Raises:
            RefusedError, UnavailableError: the server gave no answer.
            JobError: the spending limit is reached.
        """
        return self._client.try_again(lambda: self._post(question, account), self._config.retries, self._stopped)

    def _post(self, question: str, account: _Account) -> Answer:
        """Send one request, charged to the ledger; tokens that the server does not report are estimated."""
        reserved = self._reserve(question)
        prompt = output = 0
        try:
            account.requests += 1
            answer = self._client.post(question)
            prompt = estimated_tokens(question) if answer.prompt_tokens is None else answer.prompt_tokens
            output = self._config.max_output_tokens if answer.output_tokens is None else answer.output_tokens
            return answer
        except UnavailableError as error:
            if error.billed:
                prompt, output = estimated_tokens(question), self._config.max_output_tokens
            raise
        finally:
            self._ledger.settle(reserved, cost_of(self._config, prompt, output))
            account.prompt_tokens += prompt
            account.output_tokens += output

    def _reserve(self, question: str) -> float:
        try:
            return self._ledger.reserve(worst_cost(self._config, question))
        except JobError:
            self._stopped.set()
            raise

    def _count_failure(self, problem: str) -> None:
        with self._lock:
            self._failures += 1
            if self._failures < _FAILURES or self._stopped.is_set():
                return
            self._stopped.set()
        if not self._answered and problem.startswith("HTTP 4"):
            raise InputError(
                f"judge: {self._config.url} refuses every request ({problem}); see limit_field, temperature and max_output_tokens"
            )
        raise JobError(
            f"judge: {self._config.url} did not answer for {self._failures} consecutive rows ({problem}); the ratings paid for "
            "are kept: run the same command again when it answers"
        )

    def _count_rating(self, rating: float | None, said: str) -> None:
        """Stop before every row is paid for if none of the first answers contains a rating."""
        with self._lock:
            self._rated |= rating is not None
            self._unrated += rating is None
            if self._rated or self._unrated < _FAILURES or self._stopped.is_set():
                return
            self._stopped.set()
        raise InputError(
            f"judge: none of the first {self._unrated} answers ends with a line `Rating: NUMBER` from {self._config.lowest:g} to "
            f"{self._config.highest:g}; the last one ends with {said.strip()[-80:]!r}; change judge.template, or raise "
            "judge.max_output_tokens"
        )


class Journal:
    """Ratings of a set of rows, kept in memory and saved to a file at once; thread-safe.

    Args:
        path: JSON Lines file, whose existing ratings are loaded; None to keep ratings in memory only.

    Attributes:
        ratings: ratings by row id, with the total cost of each row.
    """

    def __init__(self, path: Path | None) -> None:
        self.ratings: dict[str, Rating] = {}
        self._path, self._lock = path, Lock()
        self._stream: TextIO | None = None
        for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else ():
            # A kill may have left an incomplete line.
            with contextlib.suppress(ValueError, TypeError):
                self._take(Rating(**json.loads(line)))

    def __enter__(self) -> Journal:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("a", encoding="utf-8")
            self._stream.write("\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def is_due(self, row_id: str) -> bool:
        """Whether the row has no answer yet."""
        return row_id not in self.ratings or bool(self.ratings[row_id].problem)

    def add(self, rating: Rating) -> None:
        """Record the result of a row."""
        with self._lock:
            self._take(rating)
            if self._stream is not None:
                self._stream.write(json.dumps(asdict(rating)) + "\n")
                self._stream.flush()

    def _take(self, new: Rating) -> None:
        old = self.ratings.get(new.row_id, Rating(new.row_id, None, 0, 0, 0))
        self.ratings[new.row_id] = replace(new, **{name: getattr(old, name) + getattr(new, name) for name in _SPENT})


def journal_file(folder: Path, questions: Mapping[str, str]) -> Path:
    """File with the ratings of these questions; its name is a hash of them, so that other questions do not reuse the ratings."""
    return folder / f"{digest(dict(questions))}.jsonl"


def spent_before(config: JudgeConfig, folder: Path | None) -> float:
    """Total cost of the ratings in a folder."""
    journals = [Journal(path) for path in sorted(folder.glob("*.jsonl"))] if folder is not None else []
    return sum(cost_of(config, one.prompt_tokens, one.output_tokens) for journal in journals for one in journal.ratings.values())
