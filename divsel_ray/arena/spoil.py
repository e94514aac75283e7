"""Deliberate faults in completions: a hash of seed and row id decides which rows get a fault, and of which kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divsel_ray.config.arena import Fault, SpoilConfig
from divsel_ray.data.hashing import uniform_hash

_WHOLE = 2.0**64


def faults_of(row_ids: Sequence[str], config: SpoilConfig, seed: int) -> list[Fault | None]:
    """The fault intended for each row, or None; it does not depend on the other rows.

    Args:
        row_ids: (n,) ids.
        config: share and kinds of faults.
        seed: seed of the hashes.
    """
    hit = uniform_hash(seed, "arena spoil", row_ids) < np.uint64(min(config.share * _WHOLE, _WHOLE - 2**12))
    kind = uniform_hash(seed, "arena fault", row_ids) % np.uint64(len(config.kinds))
    return [config.kinds[int(at)] if spoiled else None for spoiled, at in zip(hit, kind, strict=True)]


def spoil(completions: Sequence[str], row_ids: Sequence[str], faults: Sequence[Fault | None], seed: int) -> list[tuple[str, str]]:
    """Apply faults to completions; returns each with the name of its actual fault, which may differ, or "" for none.

    Args:
        completions: (n,) texts.
        row_ids: (n,) ids of the rows.
        faults: (n,) intended faults.
        seed: seed of the hashes. The fault "other" takes the completion of the next row in hash order whose completion differs;
            if none does, the row keeps its own.
    """
    order = np.argsort(uniform_hash(seed, "arena donor", row_ids), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    spoiled = []
    for at, (text, fault) in enumerate(zip(completions, faults, strict=True)):
        damaged = None if fault is None else _damaged(text, fault, seed, row_ids[at])
        if fault is None:
            spoiled.append((text, ""))
        elif damaged is not None:
            spoiled.append((damaged, fault))
        else:
            donors = (completions[other] for other in np.roll(order, -place[at] - 1)[:-1])
            donor = next((one for one in donors if one.strip() != text.strip()), None)
            spoiled.append((text, "") if donor is None else (donor, "other"))
    return spoiled


def _damaged(text: str, fault: Fault, seed: int, row_id: str) -> str | None:
    """The truncated or shuffled text; None if that leaves it unchanged, or if the fault needs another row."""
    words = text.split()
    if fault == "other" or len(words) < 2:
        return None
    if fault == "truncated":
        return " ".join(words[: len(words) // 2])
    numbers = np.random.default_rng([seed, int(row_id[:16], 16)])
    shuffled = [words[at] for at in numbers.permutation(len(words))]
    return None if shuffled == words else " ".join(shuffled)
