"""Drawing the rows with the smallest keys from every group, with each row's inclusion probability.

Such a draw does not depend on row order, blocks or workers, and asking for more rows extends it.
"""

from __future__ import annotations

import numpy as np

from divsel_ray.select.sampler import Keys


class Groups:
    """Rows by group (one per cluster, or the whole pool as one), for drawing some from each.

    Time O(n) for grouping and for every draw; memory 16 bytes per row in addition to the keys.

    Args:
        keys: keys of n rows, in ascending order of their ids.
        group: (n,) ints in 0..k-1.
        k: number of groups.
    """

    def __init__(self, keys: Keys, group: np.ndarray, k: int) -> None:
        self._keys, self._group = keys, group
        self.sizes = np.bincount(group, minlength=k)
        # Small integers are radix sorted, which is several times as fast.
        self._order = np.argsort(group.astype(np.uint16) if k <= 1 << 16 else group, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])[:-1]

    @property
    def random(self) -> bool:
        """Whether the order is random."""
        return self._keys.log_rates is not None

    def members(self, group: int) -> np.ndarray:
        """Positions of a group's rows, ascending."""
        start = self._starts[group]
        return self._order[start : start + self.sizes[group]]

    def ranked(self, group: int) -> np.ndarray:
        """Positions of a group's rows by key, ties by position (that is, by row id)."""
        members = self.members(group)
        return members[np.argsort(self._keys.values[members], kind="stable")]

    def smallest(self, counts: np.ndarray) -> np.ndarray:
        """Positions, ascending, of the `counts[j]` rows of each group j with the smallest keys. (k,) to (sum of counts,)."""
        parts = [self._smallest_of(group, int(counts[group])) for group in np.flatnonzero(counts)]
        return np.sort(np.concatenate(parts)) if parts else np.array([], np.int64)

    def inverse_probability(self, index: np.ndarray, counts: np.ndarray, *, fixed: bool) -> np.ndarray:
        """Inverse of the probability with which each chosen row was drawn, (b,); 1 if the order is not random.

        For equal rates it is the group's size over its count; for a single drawn row, the sum of all rates over its own.
        Otherwise it is estimated: given the other rows' keys, the probability is `1 - exp(-p_i t)`, where t is the smallest
        key of the group that was not drawn (rank conditioning, Cohen and Kaplan 2007). Sums with these weights are unbiased.

        Args:
            index: (b,) from `smallest`.
            counts: (k,) rows drawn from each group.
            fixed: whether the counts were known before the draw; if they result from it, all weights are estimated.
        """
        rates = self._keys.log_rates
        if rates is None:
            return np.ones(len(index))
        weight, chosen = np.ones(len(index)), Groups(self._keys, self._group[index], len(self.sizes))
        for group in np.flatnonzero((counts > 0) & (counts < self.sizes)):
            members, count, of_group = self.members(group), int(counts[group]), chosen.members(group)
            own = rates[index[of_group]]
            if fixed and np.ptp(rates[members]) == 0:
                weight[of_group] = len(members) / count
            elif fixed and count == 1:
                weight[of_group] = np.exp(np.logaddexp.reduce(rates[members]) - own)
            else:
                threshold = np.partition(self._keys.values[members], count)[count]
                weight[of_group] = 1.0 / -np.expm1(-np.exp(np.minimum(own + threshold, 700.0)))
        return weight

    def _smallest_of(self, group: int, count: int) -> np.ndarray:
        members = self.members(group)
        if count >= len(members):
            return members
        values = self._keys.values[members]
        last = np.partition(values, count - 1)[count - 1]
        sooner = values < last
        tied = np.flatnonzero(values == last)[: count - int(sooner.sum())]
        return np.concatenate([members[sooner], members[tied]])
