"""Signs that a run went wrong, each with its evidence, the likely cause and the setting to try.

A sign is no proof. Every detector is a pure function of a run's results; thresholds are the constants below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from divsel_ray.report.facts import Run
from divsel_ray.report.records import Mean, read_stages
from divsel_ray.report.rounds import Update
from divsel_ray.store import RUN_MANIFEST, write_json

STALLED = 0.01
"""Minimum share of the weight that moves in at least one round of a healthy run."""
FEW_ROWS = 4.0
"""Scored rows per cluster below which a round can hardly tell clusters apart."""
SWALLOWED = 0.5
SWALLOWED_TIMES = 4.0
"""A cluster has more than this share of a round, and more than this multiple of its share of the pool."""
SILHOUETTE = 0.02
"""Random vectors of hundreds of dimensions reach 0.00 to 0.01, real conversations in eight clusters 0.04."""
LOSS_NOISE = 0.01
"""Relative rise of the held-out loss below which it counts as constant."""

NONSENSE = 7.0
"""Nats per token. A pretrained model reaches 1 to 4 on text that is tokenised correctly; guessing among 32,000 tokens, 10.4."""


@dataclass(frozen=True)
class Sign:
    """A possible problem: its name, the evidence, the likely cause, and the setting to try."""

    name: str
    evidence: str
    cause: str
    setting: str


@dataclass(frozen=True)
class _Rise:
    """A rise of the held-out loss from its lowest point to the last round. `point` 0 is the untuned model."""

    point: int
    lowest: float
    last: float

    @property
    def since(self) -> str:
        """The lowest point in words."""
        return "the untuned model" if self.point == 0 else f"round {self.point}"


def find_signs(run: Run) -> list[Sign]:
    """Find all signs that a run shows; none for a healthy run."""
    found = [_nonsense(run), _hacking(run), _falling(run), _stalled(run), _noisy(run), _swallowed(run), _silhouette(run)]
    return [sign for sign in found if sign]


def looked_at(run: Run) -> list[str]:
    """The checks that a run without signs passed, in words, without those that were not measured."""
    updates, apart = _updates(run), run.clustering.silhouette
    losses, rewards = len(_losses(run)) > 1, any(one.held_out_reward for one in run.rounds[-1:])
    well = [
        ("the held-out loss does not rise", losses),
        ("rewards do not rise at its expense", losses and rewards),
        ("weights move", bool(updates)),
        ("no cluster swallows the others", bool(run.config.refine and run.rounds)),
        ("scores distinguish clusters", any(_is_measured(one, run) for one in updates)),
        (f"rows are closer to the rest of their cluster than to others (silhouette {apart or 0:.3f})", apart is not None),
    ]
    return [words for words, measured in well if measured]


def record_signs(folder: str | Path, signs: Sequence[Sign]) -> None:
    """Write signs to the run's manifest, as `signs`."""
    manifest, _ = read_stages(folder)
    write_json(Path(folder) / RUN_MANIFEST, {**manifest, "signs": [asdict(sign) for sign in signs]})


def recorded_signs(folder: str | Path) -> list[Sign]:
    """Read the signs in a run's manifest."""
    manifest, _ = read_stages(folder)
    return [Sign(**sign) for sign in manifest.get("signs", [])]


def _nonsense(run: Run) -> Sign | None:
    """The untuned model hardly beats guessing."""
    base = run.rounds[0].training.held_out_loss_base if run.rounds and run.rounds[0].training else None
    if base is None or base <= NONSENSE:
        return None
    return Sign(
        "a model that reads nonsense",
        f"the untuned model's loss on held-out rows is {base:.2f} nats per token; a pretrained model's is 1 to 4",
        "its tokenizer does not fit its weights, for example after a faulty conversion; or it was never pretrained",
        "read what it generates (round-1/generate); then use another refine.train.model, or the original of this one",
    )


def _hacking(run: Run) -> Sign | None:
    """Rewards of answers to held-out prompts rise while the held-out loss rises."""
    rise, rewards = _loss_rise(run), [run.base_reward, *(one.held_out_reward for one in run.rounds)]
    first, last = (rewards[rise.point], rewards[-1]) if rise else (None, None)
    # A higher perplexity means stranger, not better, so that a rise is no gain.
    strange = run.config.reward is not None and run.config.reward.perplexity is not None
    if strange or rise is None or first is None or last is None or last.value - first.value <= _noise(first, last):
        return None
    return Sign(
        "reward hacking",
        f"since {rise.since} the reward of its answers to held-out prompts rose from {first.value:.3g} to {last.value:.3g}, "
        f"while its loss on the data's own answers rose from {rise.lowest:.3f} to {rise.last:.3f}",
        "the model learned to please the reward model instead of learning from the data: the selection favours a trait that the "
        "reward model overrates",
        "set a second opinion (refine.second), remove length from the gaps (refine.weights.length_control: true), or choose "
        "another reward model (reward.model)",
    )


def _falling(run: Run) -> Sign | None:
    """The tuned model does worse on held-out rows than the untuned model or an earlier round."""
    rise = _loss_rise(run)
    if rise is None:
        return None
    return Sign(
        "getting worse",
        f"the held-out loss rose from {rise.lowest:.3f} ({rise.since}) to {rise.last:.3f} after the last round",
        "the learning rate is too high or the rows are repeated too often; or the selected rows say little about the rest of "
        "the pool: the embedding or the number of clusters does not fit the data",
        "lower refine.train.learning_rate or refine.train.epochs; then try another embed.model, and run divsel choose-k for "
        "cluster.k",
    )


def _stalled(run: Run) -> Sign | None:
    updates = _updates(run)
    if not updates or any(one.moved >= STALLED for one in updates):
        return None
    evidence = f"at most {max(one.moved for one in updates):.2%} of the weight moved in any of {len(updates)} rounds"
    return Sign("stalled weights", evidence, *_why_stalled(updates))


def _why_stalled(updates: Sequence[Update]) -> tuple[str, str]:
    """Likely cause, and setting to try."""
    rows = sum(one.scored for one in updates) / max(1, sum(one.clusters_scored for one in updates))
    if all(one.agreement is not None and one.agreement < 0.5 for one in updates):
        return "the second opinion contradicts the reward on most clusters, so they kept their weight", (
            "check both models (reward, refine.second): one of them cannot judge these completions"
        )
    if any(one.told_apart for one in updates):
        return "gaps do distinguish clusters, but the update is too mild", "lower refine.weights.tau"
    if rows < FEW_ROWS:
        return f"a round scores only {rows:.1f} rows per cluster, too few to distinguish clusters", (
            "raise budget, lower cluster.k or refine.rounds, or score a probe (refine.scored: probe, refine.probe)"
        )
    return "gaps differ between clusters no more than by chance, so shrinkage removed the differences", (
        "score more rows (refine.scored: probe, refine.probe), or use a reward model that distinguishes these completions; "
        "if clusters are equal to the model, a static selection does as well"
    )


def _noisy(run: Run) -> Sign | None:
    """In most rounds, clusters' mean gaps differ no more than by noise."""
    updates = _updates(run)
    noisy = [one for one in updates if _is_noisy(one)]
    if len(noisy) * 2 <= len(updates):
        return None
    last = noisy[-1]
    spread = f"{last.spread:.2g}" if last.spread is not None else "unknown"
    error = f"{last.error:.2g}" if last.error is not None else "unknown"
    return Sign(
        "noisy scores",
        f"in {len(noisy)} of {len(updates)} rounds clusters' mean gaps differed no more than by noise (last: spread "
        f"{spread}, standard error {error})",
        "too few rows are scored per cluster, or the reward says little about these completions",
        "score more rows (refine.scored: probe, refine.probe; refine.generate.samples), lower cluster.k or refine.rounds, or "
        "keep refine.weights.shrinkage on so that noise moves nothing",
    )


def _is_noisy(update: Update) -> bool:
    if update.spread is None or update.error is None:
        return not update.told_apart
    return not update.told_apart or update.error > update.spread


def _is_measured(update: Update, run: Run) -> bool:
    """Whether the noise of a round is known, from shrinkage or from the standard errors of the means."""
    assert run.config.refine is not None
    return run.config.refine.weights.shrinkage or (update.spread is not None and update.error is not None)


def _swallowed(run: Run) -> Sign | None:
    """One cluster has most of the last round's rows, or of the weight after it."""
    if not run.config.refine or not run.rounds:
        return None
    last, total = run.rounds[-1], max(1, sum(cluster.size for cluster in run.clustering.clusters))
    drawn = [count / max(1, last.new) for count in last.new_by_cluster]
    shares = {"of the last round's new rows": drawn, "of the last weights": list(last.update.after) if last.update else []}
    for what, share in shares.items():
        for cluster in run.clustering.clusters:
            here, pool = share[cluster.number] if cluster.number < len(share) else 0.0, cluster.size / total
            if here > SWALLOWED and here > SWALLOWED_TIMES * pool:
                return Sign(
                    "one cluster swallowed the rest",
                    f"cluster {cluster.number} has {here:.0%} {what}, and {pool:.1%} of the pool",
                    "weights move too far on the gaps of one cluster, often one with odd or spoiled rows",
                    "raise refine.weights.tau, set refine.weights.ceiling and .floor, or lower .max_step, and read that "
                    "cluster's rows",
                )
    return None


def _silhouette(run: Run) -> Sign | None:
    found = run.clustering.silhouette
    if found is None or found >= SILHOUETTE:
        return None
    return Sign(
        "clusters that hardly differ",
        f"the simplified silhouette of the clusters, each row left out of its own centroid, is {found:.3f} (0: rows are as close "
        "to another cluster as to their own)",
        "the vectors form no groups at this number of clusters, or say little about the texts",
        "run divsel choose-k for cluster.k; then try another embed.model, or other vectors in embed.given",
    )


def _updates(run: Run) -> list[Update]:
    return [one.update for one in run.rounds if one.update]


def _losses(run: Run) -> list[tuple[float, int]]:
    """The known held-out losses and their points (0 is the untuned model); none if the last round's is unknown."""
    trained = [one.training for one in run.rounds if one.training]
    if not trained or len(trained) != len(run.rounds):
        return []
    losses = [trained[-1].held_out_loss_base, *(one.held_out_loss for one in trained)]
    return [] if losses[-1] is None else [(loss, point) for point, loss in enumerate(losses) if loss is not None]


def _loss_rise(run: Run) -> _Rise | None:
    """The rise of the held-out loss, if the last round's exceeds the lowest by more than its noise."""
    losses = _losses(run)
    if not losses or losses[-1][0] <= min(losses)[0] * (1 + LOSS_NOISE):
        return None
    return _Rise(min(losses)[1], min(losses)[0], losses[-1][0])


def _noise(*means: Mean) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(math.fsum((mean.standard_error or 0.0) ** 2 for mean in means))
