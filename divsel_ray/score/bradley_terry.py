"""A small stand-in reward model, fitted on preference pairs by the model of Bradley and Terry (1952).

    P(chosen preferred to rejected) = sigmoid(r(chosen) - r(rejected)),   loss = -log P

It lets the whole job run where no real reward model can be fetched. It knows relevance, completeness and coherence as
far as `preferences` can spoil them, and nothing of helpfulness or truth.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divsel_ray.config import FitRewardConfig
from divsel_ray.errors import InputError
from divsel_ray.models.references import resolve_model
from divsel_ray.score.encoding import Encoded, collate, encode_exchange, load_tokenizer, position_limit, seen_completion
from divsel_ray.score.preferences import KINDS, Comparison, draw, make_comparisons
from divsel_ray.score.scorer import Exchange, encode_each
from divsel_ray.store import atomic_path

THREADS = 2
"""Compute threads of a fit, whatever the machine has: sums over threads round by their number."""

SMALLEST_POOL = 10
_PROMPTS_PER_STEP = 8
_LOSSES_REPORTED = 20


def fit_reward_model(
    exchanges: list[Exchange], config: FitRewardConfig, seed: int, folder: Path, report: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Fit the model and save it as an ordinary transformers sequence-classification folder.

    The held-out prompts are `config.held_out` of the exchanges, drawn by a hash of seed and row id; of few exchanges,
    the share that they have in the configuration. The rest is trained on.

    Args:
        exchanges: the prompts and completions; neither their order nor more than prompts + held_out of them matter.
        config: base model and training settings.
        seed: of every draw, and of the new output layer.
        folder: where the model and its tokenizer are saved.
        report: called with (steps done, steps in all) during training.

    Returns:
        {"pairs", "held_out_pairs", "held_out_accuracy", "accuracy_by_kind", "train_loss", "seconds"}; the losses are
        means over at most 20 equal stretches of the training.

    Raises:
        InputError: fewer than 10 exchanges, or the base is no encoder that transformers can load.
    """
    import torch

    started = time.perf_counter()
    with _fixed_threads():
        torch.manual_seed(seed)
        tokenizer, model = _load_base(config.base)
        _freeze(model, config.trained_layers)
        max_tokens = min(config.max_tokens, position_limit(model))
        train, held_out = (
            _encode_comparisons(tokenizer, make_comparisons(part, seed), max_tokens)
            for part in split_held_out(_seen(tokenizer, exchanges, max_tokens), config, seed)
        )
        losses = _train(tokenizer, model, train, config, seed, report or _unreported)
        accuracy = _accuracy(tokenizer, model, held_out)
    _save(model, tokenizer, folder)
    pairs, held_out_pairs = (sum(len(group) - 1 for group in part) for part in (train, held_out))
    seconds = round(time.perf_counter() - started, 1)
    return {"pairs": pairs, "held_out_pairs": held_out_pairs, **accuracy, "train_loss": losses, "seconds": seconds}


Group = dict[str, Encoded]
"""The own completion under "chosen", then the spoiled ones by kind."""


def split_held_out(exchanges: Sequence[Exchange], config: FitRewardConfig, seed: int) -> tuple[list[Exchange], list[Exchange]]:
    """Training and held-out exchanges.

    Raises:
        InputError: fewer than 10 exchanges.
    """
    if len(exchanges) < SMALLEST_POOL:
        raise InputError(
            f"reward.fit: the pool gives {len(exchanges)} usable rows, at least {SMALLEST_POOL} are needed; name a reward.model"
        )
    wanted = config.prompts + config.held_out
    held_out = max(2, min(config.held_out, len(exchanges) * config.held_out // wanted))
    order = sorted(exchanges, key=lambda exchange: (draw(seed, "held_out", exchange.row_id), exchange.row_id))
    return order[held_out:wanted], order[:held_out]


def _seen(tokenizer: Any, exchanges: Sequence[Exchange], max_tokens: int) -> list[Exchange]:
    """Exchanges with what the model sees of their completion: a cut or a swap beyond that would change nothing."""
    texts, _ = encode_each(exchanges, lambda exchange: seen_completion(tokenizer, exchange, max_tokens))
    return [Exchange(exchanges[at].row_id, exchanges[at].messages, text) for at, text in texts.items() if text.strip()]


def _encode_comparisons(tokenizer: Any, comparisons: Sequence[Comparison], max_tokens: int) -> list[Group]:
    groups = [{"chosen": comparison.chosen, **comparison.rejected} for comparison in comparisons if comparison.rejected]
    return [{kind: encode_exchange(tokenizer, row, max_tokens) for kind, row in group.items()} for group in groups]


def _load_base(base: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = resolve_model(base)
    try:
        tokenizer = load_tokenizer(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(
            f"reward.fit.base {base}: cannot be loaded as an encoder: {' '.join(str(error).split())[:300]}"
        ) from None
    if tokenizer.pad_token_id is None:
        raise InputError(f"reward.fit.base {base}: its tokenizer has no padding token; expected an encoder such as BERT")
    return tokenizer, model.eval()  # no dropout: one short pass over the pairs does not overfit


def _freeze(model: Any, trained_layers: int) -> None:
    """Leave the head, the pooler and the top encoder layers trainable; everything, where layers cannot be told apart."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if layers is None:
        return
    pooler = getattr(model.base_model, "pooler", None)
    model.base_model.requires_grad_(False)
    for part in [pooler, *layers[len(layers) - trained_layers :]]:
        if part is not None:
            part.requires_grad_(True)


def _unreported(done: int, total: int) -> None:
    """Report nothing."""


def _train(
    tokenizer: Any, model: Any, groups: list[Group], config: FitRewardConfig, seed: int, report: Callable[[int, int], None]
) -> list[float]:
    """AdamW with a linear decay to zero; returns mean losses over time."""
    import torch

    steps = [step for epoch in range(config.epochs) for step in _steps(groups, np.random.default_rng([seed, epoch]))]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=len(steps))
    losses = []
    for step in steps:
        loss = -torch.nn.functional.logsigmoid(_margins(tokenizer, model, step)[0]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        report(len(losses), len(steps))
    return [round(float(part.mean()), 4) for part in np.array_split(losses, min(_LOSSES_REPORTED, len(losses)))]


def _steps(groups: list[Group], generator: np.random.Generator) -> list[list[Group]]:
    """Prompts of like length together, so that little is padded; the steps in a drawn order."""
    by_length = sorted(groups, key=lambda group: max(len(item.ids) for item in group.values()))
    steps = [by_length[start : start + _PROMPTS_PER_STEP] for start in range(0, len(by_length), _PROMPTS_PER_STEP)]
    return [steps[index] for index in generator.permutation(len(steps))]


def _margins(tokenizer: Any, model: Any, groups: list[Group]) -> tuple[Any, list[str]]:
    """r(chosen) - r(rejected) of every pair, (pairs,), and each pair's kind; one forward pass for all."""
    import torch

    texts = [item for group in groups for item in group.values()]
    rewards = model(**collate(tokenizer, texts, tokenizer.pad_token_id)).logits[:, 0]
    margins, kinds, start = [], [], 0
    for group in groups:
        margins.append(rewards[start] - rewards[start + 1 : start + len(group)])
        kinds += [kind for kind in group if kind != "chosen"]
        start += len(group)
    return torch.cat(margins), kinds


def _accuracy(tokenizer: Any, model: Any, groups: list[Group]) -> dict[str, Any]:
    """Share of held-out pairs in which the own completion has the higher reward, overall and by kind."""
    import torch

    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    with torch.no_grad():
        for step in _steps(groups, np.random.default_rng(0)):
            margins, kinds = _margins(tokenizer, model, step)
            for kind, margin in zip(kinds, margins.tolist(), strict=True):
                right[kind].append(margin > 0)
    by_kind = {kind: round(float(np.mean(values)), 4) for kind, values in right.items() if values}
    return {"held_out_accuracy": round(float(np.mean([*itertools.chain(*right.values())])), 4), "accuracy_by_kind": by_kind}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)


@contextlib.contextmanager
def _fixed_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
