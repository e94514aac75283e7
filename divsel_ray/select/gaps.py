"""Cluster gaps estimated from the gaps of single rows (Yu et al. 2024, Eq. 5), and how much of them is noise or length.

Eq. 5: `s_j` is the mean of `S_i` over the scored rows of cluster j. Six rows per cluster are mostly noise, so the means are
shrunk towards the overall mean according to a one-way analysis of variance with random effects (Searle 1971).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from divsel_ray.data.hashing import uniform_hash

_ROUNDING = 1e-12
"""Gaps that differ by less than this share of the largest are equal up to rounding."""
_SMALLEST = 1e-290


@dataclass(frozen=True)
class RowGaps:
    """The scored rows of a round.

    Attributes:
        gap: (n,) S_i, in the units of the scorer; NaN where scoring failed.
        cluster: (n,) in 0..k-1.
        longer: (n,) tokens of the gold completion minus tokens of the generated one, as scored.
        second: (n,) the same gap by a second scorer (NaN where it failed), or None without one.
    """

    gap: np.ndarray
    cluster: np.ndarray
    longer: np.ndarray
    second: np.ndarray | None = None


@dataclass(frozen=True)
class ClusterGaps:
    """Gaps by cluster, in units of the pooled standard deviation.

    Attributes:
        scored: (k,) number of scored rows.
        mean: (k,) mean gap s_j; NaN where no row was scored.
        standard_error: (k,) standard error of the mean, from the pooled within-cluster variance (1 in these units).
        effect: (k,) s^_j - m, deviation of the shrunk mean from the overall mean; NaN where no row was scored.
        overall: m, the mean over all scored rows.
        unit: pooled standard deviation by which everything was divided.
        between: estimated variance between clusters. If it is not positive, the gaps distinguish clusters no better than
            chance, or every cluster has one row and noise cannot be separated from difference.
    """

    scored: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    effect: np.ndarray
    overall: float
    unit: float
    between: float

    @property
    def shrunk(self) -> np.ndarray:
        """(k,) the shrunk means s^_j."""
        return np.asarray(self.overall + self.effect)

    def given_to(self, source: np.ndarray) -> ClusterGaps:
        """The same gaps, with cluster j given the statistics of cluster `source[j]`, (k,) ints."""
        names = ("scored", "mean", "standard_error", "effect")
        return replace(self, **{name: getattr(self, name)[source] for name in names})


def cluster_gaps(gaps: np.ndarray, cluster: np.ndarray, k: int, *, shrinkage: bool) -> ClusterGaps:
    """Means per cluster and their noise, with variances within and between from a one-way analysis of variance.

    Shrinkage: `s^_j = m + n_j / (n_j + kappa) (s_j - m)`, kappa = variance within / variance between; all means become m
    when the variance between is not positive.

    Args:
        gaps: (n,) S_i; rows with NaN (a scoring error) are ignored.
        cluster: (n,) in 0..k-1.
        k: number of clusters.
        shrinkage: whether means are shrunk.
    """
    valid = np.isfinite(gaps)
    gaps, cluster = gaps[valid], cluster[valid]
    overall, scale, gaps = _standardised(gaps)
    scored = np.bincount(cluster, minlength=k)
    means = np.bincount(cluster, gaps, minlength=k) / np.maximum(scored, 1)
    free = len(gaps) - int((scored > 0).sum())
    within = float(((gaps - means[cluster]) ** 2).sum() / free) if free else 0.0
    within = within if within > _ROUNDING**2 else 0.0
    between = _variance_between(scored, means, within) if free else 0.0
    unit = float(np.sqrt(within)) or (float(gaps.std()) if len(gaps) else 0.0) or 1.0
    pull = scored / np.maximum(scored + within / between, 1e-9) if between > 0 else np.zeros(k)
    seen = scored > 0
    return ClusterGaps(
        scored=scored,
        mean=np.where(seen, means / unit + overall / (scale * unit), np.nan),
        standard_error=np.where(seen, np.sqrt(within / np.maximum(scored, 1)) / unit, np.nan),
        effect=np.where(seen, (pull if shrinkage else 1.0) * means / unit, np.nan),
        overall=overall / (scale * unit),
        unit=scale * unit,
        between=between / unit**2,
    )


def _standardised(gaps: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The mean, the largest deviation from it, and all deviations in units of the largest, so that no square overflows."""
    if not len(gaps):
        return 0.0, 1.0, gaps
    largest = max(float(np.abs(gaps).max()), _SMALLEST)
    overall = float((gaps / largest).mean()) * largest
    deviation = gaps - overall
    scale = float(np.abs(deviation).max())
    if scale <= max(_ROUNDING * largest, _SMALLEST):
        return overall, 1.0, np.zeros(len(gaps))
    return overall, scale, deviation / scale


def _variance_between(scored: np.ndarray, effects: np.ndarray, within: float) -> float:
    """Random-effects estimate (MSB - MSW) / n0, n0 the effective rows per cluster; `effects` are means minus the overall mean."""
    used, total = int((scored > 0).sum()), float(scored.sum())
    if used < 2:
        return 0.0
    effective = (total - (scored**2).sum() / total) / (used - 1)
    mean_square = float((scored * effects**2).sum()) / (used - 1)
    return (mean_square - within) / effective if mean_square > _ROUNDING**2 else 0.0


@dataclass(frozen=True)
class LengthTrend:
    """The part of the gaps explained by the lengths of the completions.

    Attributes:
        slope: change of the gap per token by which the gold completion is longer, in the units of the scorer.
        share: explained share of the variance of the gaps, 0 to 1.
    """

    slope: float
    share: float


def remove_length(gaps: np.ndarray, longer: np.ndarray) -> tuple[np.ndarray, LengthTrend]:
    """Remove the linear effect of length from the gaps: the length control of the reward.

    Least squares with an intercept over the rows that have a gap. Only the centred slope term is removed, so the mean gap is
    unchanged.

    Args:
        gaps: (n,) in the units of the scorer, NaN where unknown.
        longer: (n,) tokens by which the gold completion is longer.

    Returns:
        (n,) residual gaps, NaN where unknown, and the trend.
    """
    valid = np.isfinite(gaps)
    if not valid.any():
        return gaps, LengthTrend(0.0, 0.0)
    length = longer - longer[valid].mean()
    _, scale, deviation = _standardised(gaps[valid])
    square = float((length[valid] ** 2).sum())
    slope = float((length[valid] * deviation).sum()) / square if square > 0 else 0.0
    spread = float((deviation**2).sum())
    share = min(slope**2 * square / spread, 1.0) if spread > 0 else 0.0
    return gaps - slope * scale * length, LengthTrend(slope * scale, share)


def shuffled_clusters(scored: np.ndarray, seed: int, number: int) -> np.ndarray:
    """Which cluster's gaps each cluster gets in the shuffled control: a random permutation of the scored clusters.

    Args:
        scored: (k,) number of scored rows.
        seed: seed of the job.
        number: number of the round.

    Returns:
        (k,) ints; a cluster without a scored row maps to itself.
    """
    seen = np.flatnonzero(scored > 0)
    hashes = uniform_hash(seed, f"shuffled-feedback:{number}", [f"{cluster:032x}" for cluster in seen])
    source = np.arange(len(scored))
    source[seen] = seen[np.argsort(hashes, kind="stable")]
    return source
