"""Reward models fitted to preference pairs by the model of Bradley and Terry (1952).

    P(chosen preferred to rejected) = sigmoid(r(chosen) - r(rejected)),   loss = -log P

`fit_comparisons` uses given preferences of people or models. `fit_reward_model` makes its own pairs from a pool: a small
stand-in that lets the whole job run where no real reward model is available. It learns relevance, completeness and
coherence as far as `preferences` can corrupt them, and nothing about helpfulness or truth.
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
from divsel_ray.errors import InputError, JobError, words_of
from divsel_ray.models.references import resolve_model
from divsel_ray.score.encoding import Encoded, collate, encode_exchange, fast_tokenizer, position_limit, seen_completion
from divsel_ray.score.preferences import Comparison, draw, make_comparisons
from divsel_ray.score.scorer import Exchange, encode_each
from divsel_ray.store import atomic_path

THREADS = 2
"""Compute threads of a fit, whatever the machine has: the rounding of sums depends on the number of threads."""

SMALLEST_POOL = 10
_PROMPTS_PER_STEP = 8
_LOSSES_REPORTED = 20


def fit_reward_model(
    exchanges: list[Exchange], config: FitRewardConfig, seed: int, folder: Path, report: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Fit the model and save it as an ordinary transformers sequence-classification folder.

    `config.held_out` of the exchanges, drawn by a hash of seed and row id, are held out; if there are too few exchanges,
    held-out and training prompts are in the proportion of the configuration.

    Args:
        exchanges: prompts and completions, in any order; at most prompts + held_out of them are used.
        config: base model and training settings.
        seed: seed of every draw and of the new output layer.
        folder: where the model and its tokenizer are saved.
        report: called with (steps done, total steps) during training.

    Returns:
        {"pairs", "held_out_pairs", "held_out_accuracy", "accuracy_by_kind", "train_loss", "seconds", "refused"}; the losses
        are means over at most 20 equal parts of the training, and "refused" counts the prompts that the base model's chat
        template refuses. Pairs that do not differ in the part the model sees are left out.

    Raises:
        InputError: there are fewer than 10 exchanges or too few that differ, or transformers cannot load the base model.
        JobError: the training diverged.
    """
    started = time.perf_counter()
    with _fixed_threads():
        tokenizer, model = _load_base(config, seed)
        max_tokens = min(config.max_tokens, position_limit(model))
        seen, refused = _seen(tokenizer, exchanges, max_tokens)
        train, held_out = (make_comparisons(part, seed) for part in split_held_out(seen, config, seed))
        facts = _fit(tokenizer, model, train, held_out, config, seed, report or _unreported)
    _save(model, tokenizer, folder)
    return {**facts, "seconds": round(time.perf_counter() - started, 1), "refused": facts["refused"] + refused}


def fit_comparisons(
    train: Sequence[Comparison],
    held_out: Sequence[Comparison],
    config: FitRewardConfig,
    seed: int,
    folder: Path,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fit a model to given preferences, on the GPU if there is one, and save it as `fit_reward_model` does.

    Args:
        train, held_out: preferences; neither may be empty.
        config: base model (an encoder or a causal language model) and training settings; prompts and held_out are ignored.
        seed, folder, report: as for `fit_reward_model`.

    Returns:
        As `fit_reward_model`.

    Raises:
        InputError: the base model cannot be loaded, or its chat template refuses every training or held-out comparison.
    """
    started = time.perf_counter()
    tokenizer, model = _load_base(config, seed)
    facts = _fit(tokenizer, model, train, held_out, config, seed, report or _unreported)
    _save(model, tokenizer, folder)
    return {**facts, "seconds": round(time.perf_counter() - started, 1)}


Group = dict[str, Encoded]
"""The chosen completion under "chosen", then the rejected ones by kind."""


def _fit(
    tokenizer: Any,
    model: Any,
    train: Sequence[Comparison],
    held_out: Sequence[Comparison],
    config: FitRewardConfig,
    seed: int,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train the model and evaluate it on the held-out comparisons."""
    max_tokens = min(config.max_tokens, position_limit(model))
    (groups, refused), (apart, refused_apart) = (_encode_comparisons(tokenizer, part, max_tokens) for part in (train, held_out))
    if not (groups and apart):
        raise InputError(
            f"reward: {len(groups):,} of {len(train):,} prompts to learn from and {len(apart):,} of {len(held_out):,} held out "
            "have completions that the model can distinguish; at least one of each is needed: use more varied rows, or raise "
            "max_tokens"
        )
    losses = _train(tokenizer, model, groups, config, seed, report)
    pairs, held_out_pairs = (sum(len(group) - 1 for group in part) for part in (groups, apart))
    return {
        "pairs": pairs,
        "held_out_pairs": held_out_pairs,
        "refused": refused + refused_apart,
        **_accuracy(tokenizer, model, apart),
        "train_loss": losses,
    }


def split_held_out(exchanges: Sequence[Exchange], config: FitRewardConfig, seed: int) -> tuple[list[Exchange], list[Exchange]]:
    """Split the exchanges into training and held-out ones.

    Raises:
        InputError: there are fewer than 10 exchanges.
    """
    if len(exchanges) < SMALLEST_POOL:
        raise InputError(
            f"reward.fit: the pool has {len(exchanges)} usable rows, at least {SMALLEST_POOL} are needed; set reward.model"
        )
    wanted = config.prompts + config.held_out
    held_out = max(2, min(config.held_out, len(exchanges) * config.held_out // wanted))
    order = sorted(exchanges, key=lambda exchange: (draw(seed, "held_out", exchange.row_id), exchange.row_id))
    return order[held_out:wanted], order[:held_out]


def _seen(tokenizer: Any, exchanges: Sequence[Exchange], max_tokens: int) -> tuple[list[Exchange], int]:
    """Truncate completions to what the model sees, as a change beyond that would have no effect; returns the exchanges and
    the number that the chat template refuses."""
    texts, _ = encode_each(exchanges, lambda exchange: seen_completion(tokenizer, exchange, max_tokens))
    seen = [Exchange(exchanges[at].row_id, exchanges[at].messages, text) for at, text in texts.items() if text.strip()]
    return seen, len(exchanges) - len(texts)


def _encode_comparisons(tokenizer: Any, comparisons: Sequence[Comparison], max_tokens: int) -> tuple[list[Group], int]:
    """Encode comparisons as token ids; returns them and the number that the chat template refuses.

    Raises:
        InputError: the chat template refuses all of them.
    """
    groups = [{"chosen": comparison.chosen, **comparison.rejected} for comparison in comparisons if comparison.rejected]
    rows = [row for group in groups for row in group.values()]
    encoded, problem = encode_each(rows, lambda row: encode_exchange(tokenizer, row, max_tokens))
    places = itertools.count()
    whole: list[Group] = []
    for group in groups:
        found = {kind: encoded[place] for kind, place in zip(group, places, strict=False) if place in encoded}
        whole += [found] if len(found) == len(group) else []
    if groups and not whole:
        raise InputError(f"the base model's chat template refuses every one of {len(groups):,} prompts: {problem}")
    return [group for group in map(_told_apart, whole) if len(group) > 1], len(groups) - len(whole)


def _told_apart(group: Group) -> Group:
    """Keep the chosen completion and those that still differ from it after truncation to what the model sees."""
    chosen = group["chosen"]
    return {kind: item for kind, item in group.items() if kind == "chosen" or item.ids != chosen.ids}


def _load_base(config: FitRewardConfig, seed: int) -> tuple[Any, Any]:
    """Load the base model with a new output layer, all but its top layers frozen, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    folder = resolve_model(config.base)
    try:
        tokenizer = fast_tokenizer(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"base model {config.base}: cannot be loaded as the base of a reward model: {words_of(error)}") from None
    if is_decoder(folder):
        _prepare_decoder(tokenizer, model)
    if tokenizer.pad_token_id is None:
        raise InputError(f"base model {config.base}: its tokenizer has no padding token")
    _freeze(model, config.trained_layers)
    # eval() disables dropout: one short pass over the pairs does not overfit.
    return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def is_decoder(folder: str) -> bool:
    """Whether a model is a causal language model, by the architecture named in its configuration.

    Raises:
        OSError, ValueError: the configuration cannot be loaded.
    """
    from transformers import AutoConfig

    names = AutoConfig.from_pretrained(folder).architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names)


_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}{{ eos_token }}"
)


def _prepare_decoder(tokenizer: Any, model: Any) -> None:
    """Add a missing chat template and padding token; both are saved, so that later scoring uses the same."""
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = _PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        # Not the token that ends a text: the score is read at the last token that is not padding.
        tokens = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token)
        tokenizer.pad_token = next((token for token in tokens if token not in (None, tokenizer.eos_token)), tokenizer.eos_token)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _freeze(model: Any, trained_layers: int) -> None:
    """Freeze all but the head, the pooler and the top layers; nothing, if the layers cannot be identified."""
    base = model.base_model
    layers = getattr(getattr(base, "encoder", None), "layer", None) or getattr(base, "layers", None)
    if layers is None:
        return
    base.requires_grad_(False)
    for part in [getattr(base, "pooler", None), getattr(base, "norm", None), *layers[max(0, len(layers) - trained_layers) :]]:
        if part is not None:
            part.requires_grad_(True)


def _unreported(done: int, total: int) -> None:
    """Report nothing."""


def _train(
    tokenizer: Any, model: Any, groups: list[Group], config: FitRewardConfig, seed: int, report: Callable[[int, int], None]
) -> list[float]:
    """Train with AdamW, the learning rate falling linearly to a twentieth; returns mean losses over time."""
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
        if not np.isfinite(losses[-1]):
            raise JobError(f"fitting a reward model diverged at step {len(losses)} of {len(steps)}; lower its learning rate")
        report(len(losses), len(steps))
    return [round(float(part.mean()), 4) for part in np.array_split(losses, min(_LOSSES_REPORTED, len(losses)))]


def _steps(groups: list[Group], generator: np.random.Generator) -> list[list[Group]]:
    """Group prompts of similar length, so that there is little padding; the steps are in random order."""
    by_length = sorted(groups, key=lambda group: max(len(item.ids) for item in group.values()))
    steps = [by_length[start : start + _PROMPTS_PER_STEP] for start in range(0, len(by_length), _PROMPTS_PER_STEP)]
    return [steps[index] for index in generator.permutation(len(steps))]


def _margins(tokenizer: Any, model: Any, groups: list[Group]) -> tuple[Any, list[str]]:
    """r(chosen) - r(rejected) of every pair, (pairs,), and each pair's kind, from a single forward pass."""
    import torch

    texts = [item for group in groups for item in group.values()]
    inputs = collate(tokenizer, texts, tokenizer.pad_token_id)
    rewards = model(**{name: values.to(model.device) for name, values in inputs.items()}).logits[:, 0]
    margins, kinds, start = [], [], 0
    for group in groups:
        margins.append(rewards[start] - rewards[start + 1 : start + len(group)])
        kinds += [kind for kind in group if kind != "chosen"]
        start += len(group)
    return torch.cat(margins), kinds


def _accuracy(tokenizer: Any, model: Any, groups: list[Group]) -> dict[str, Any]:
    """Share of held-out pairs in which the chosen completion has the higher reward, overall and by kind."""
    import torch

    right: dict[str, list[bool]] = {}
    with torch.no_grad():
        for step in _steps(groups, np.random.default_rng(0)):
            margins, kinds = _margins(tokenizer, model, step)
            for kind, margin in zip(kinds, margins.tolist(), strict=True):
                right.setdefault(kind, []).append(margin > 0)
    by_kind = {kind: round(float(np.mean(values)), 4) for kind, values in sorted(right.items())}
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
