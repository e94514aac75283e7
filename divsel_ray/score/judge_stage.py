"""A judge's ratings on Ray: one actor sends all requests, so that request and spending limits hold for all ratings.

Waiting for a server takes no CPU: the actor's threads keep as many requests pending as the settings allow.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray

from divsel_ray.actors import answer_of, start_actor
from divsel_ray.config import JudgeConfig, Workers
from divsel_ray.models.api_client import find_key
from divsel_ray.progress import Progress
from divsel_ray.resources import Cluster, await_ready
from divsel_ray.score.chat_client import SECTION
from divsel_ray.score.judge import cost_of, estimated_tokens, write_question
from divsel_ray.score.parts import COUNTED, Part, read_part, score_part, summarise
from divsel_ray.score.spec import ScorerSpec


def rate_parts(parts: Sequence[Part], spec: ScorerSpec, cluster: Cluster, workers: Workers, progress: Progress) -> dict[str, Any]:
    """Let the judge rate every unit that is not yet rated, after announcing the estimated cost.

    Ratings are saved at once, in a folder `ratings` next to the units' files, until all units are done.

    Returns:
        Over all units: {"rows", "missing", "mean", "sd", "seconds", "requests", "prompt_tokens", "output_tokens", "failed"
        (rows without an answer from the server), "cost"}.

    Raises:
        InputError: the key is missing or refused, or the server has no such model.
        JobError: the spending limit is reached, the server no longer responds, or no row could be rated.
    """
    started, judge = time.perf_counter(), _settings(spec)
    # Checked here too, not only on a worker, so that a missing key is reported before anything starts.
    find_key(judge, SECTION)
    journals = {str(Path(part.target).with_name("ratings")) for part in parts}
    counts: list[dict[str, Any]] = []
    actor = start_actor(_Rater, [spec, list(parts)], workers, 0)
    try:
        await_ready([actor.ready.remote()], "judge", workers, cluster.placement_timeout_s)
        rows, tokens = answer_of(actor.estimate.remote(), "judge")
        progress.note(_announced(judge, rows, tokens))
        due = {part.target for part in parts if not Path(part.target).is_file()}
        for part in parts:
            counts.append(answer_of(actor.rate.remote(part), "judge"))
            progress.advance(sum(count["rows"] for count in counts if count["target"] in due), rows, "rows")
    finally:
        ray.kill(actor)
    facts = summarise(counts)
    for folder in journals:
        shutil.rmtree(folder, ignore_errors=True)
    sums = {name: sum(count[name] for count in counts) for name in COUNTED}
    cost = cost_of(judge, sums["prompt_tokens"], sums["output_tokens"])
    return {**facts, "seconds": round(time.perf_counter() - started, 3), **sums, "cost": cost}


def _settings(spec: ScorerSpec) -> JudgeConfig:
    if spec.judge is None:
        raise RuntimeError("this scorer is not a judge")
    return spec.judge


def _announced(judge: JudgeConfig, rows: int, prompt_tokens: int) -> str:
    output_tokens = rows * judge.max_output_tokens
    cost = cost_of(judge, prompt_tokens, output_tokens)
    priced = f"cost up to about {cost:,.4g}" if judge.prompt_price or judge.output_price else "no prices are set"
    limit = "" if judge.max_cost is None else f", the limit is {judge.max_cost:g}"
    return (
        f"judge {judge.model}: {rows:,} rows to rate, about {prompt_tokens:,} prompt tokens and at most {output_tokens:,} output "
        f"tokens, {priced}{limit}"
    )


class _Rater:
    """An actor with the judge, created when first needed; after a restart it continues from the saved ratings."""

    def __init__(self, spec: ScorerSpec, parts: list[Part]) -> None:
        self._spec, self._parts, self._config = spec, parts, _settings(spec)
        self._load = cache(lambda journal: spec.load(journal=journal))

    def ready(self) -> bool:
        """Return once the actor has its resources."""
        return True

    def estimate(self) -> tuple[int, int]:
        """Number of rows in unfinished units, and the prompt tokens of their questions at four bytes per token."""
        rows = tokens = 0
        for part in self._parts:
            for exchange in [] if Path(part.target).is_file() else read_part(part):
                question = write_question(self._spec.template, exchange, self._config, self._spec.max_tokens)
                rows, tokens = rows + 1, tokens + estimated_tokens(question)
        return rows, tokens

    def rate(self, part: Part) -> dict[str, Any]:
        """Rate a unit unless that is done; returns its counts."""
        return score_part(part, partial(self._load, Path(part.target).with_name("ratings")))
