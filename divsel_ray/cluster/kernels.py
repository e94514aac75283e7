"""The array kernels of Lloyd's k-means (Lloyd 1982): assign, reassign, accumulate. PyTorch on a CPU or a GPU, no Ray.

Every kernel computes the answer for a part of the rows such that the answers of all parts combine into the whole. No answer
depends on where the rows were cut, nor on the order in which a matrix product sums: a fast product screens the centroids
(`screen.Screen`), and centroids within its error bound of the nearest are settled by a float64 distance that is computed
row by row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from divsel_ray.cluster.exact import Float32, Float64, Grid, Int64
from divsel_ray.cluster.screen import DEVICE_BYTES, Screen

Rows = npt.NDArray[Any] | torch.Tensor
"""Vectors, shape (n, d), float16, bfloat16 or float32."""
Int32 = npt.NDArray[np.int32]

BLOCK_ELEMENTS = 1 << 22
"""Number of row elements processed together."""
DEVICE_ELEMENTS = 1 << 26
"""The same on a GPU, where every step has a launch cost."""
CACHED_ELEMENTS = 1 << 16
"""Size of a float64 temporary in elements, chosen to fit a core's cache."""
LARGEST_SQUARED_NORM = 1e36
"""Rows beyond it would overflow the float32 matrix product."""
DOUBTFUL_ROWS, DOUBTFUL_SHARE = 64, 0.2
"""A finer product is used once one leaves more rows of a batch, and a larger share of it, undecided."""
FULL_PASS_SHARE = 0.8
"""If a larger share of the centroids moved, a full assignment costs less than a reassignment."""


class Assignment(NamedTuple):
    """The nearest centroid of each row: labels (n,) and squared Euclidean distances (n,) float64."""

    labels: Int32
    squared_distances: Float64


class Bounds(NamedTuple):
    """State that a pass keeps for the next one, one element per row.

    Attributes:
        norms: (n,) float64 squared norms.
        labels: (n,) int32 nearest centroids.
        upper: (n,) float32 upper bounds of half the squared distance to the row's own centroid.
        second: (n,) float32 lower bounds of half the squared distance to any other centroid.
    """

    norms: torch.Tensor
    labels: torch.Tensor
    upper: torch.Tensor
    second: torch.Tensor

    @classmethod
    def empty(cls, n: int) -> Bounds:
        """Allocate uninitialised bounds for `n` rows."""
        upper, second = (torch.empty(n, dtype=torch.float32) for _ in range(2))
        # Norms in float32 would be off by more than the error bounds of a float64 screen allow for.
        return cls(torch.empty(n, dtype=torch.float64), torch.empty(n, dtype=torch.int32), upper, second)

    def part(self, start: int, stop: int) -> Bounds:
        """A view of a range of rows; the memory is shared."""
        return Bounds(*(field[start:stop] for field in self))


class Move(NamedTuple):
    """An update of the centroids (k, d), in the form that a reassignment needs.

    Attributes:
        after: centroids to assign to.
        moved: (m,) int64 indices of the changed centroids.
        position: (k,) int64 position in `moved`, -1 for unchanged centroids.
    """

    after: Float32
    moved: Int64
    position: torch.Tensor

    @classmethod
    def between(cls, before: Float32, after: Float32) -> Move:
        """Compare two sets of centroids."""
        moved = np.flatnonzero((before != after).any(axis=1))
        position = torch.full((len(before),), -1, dtype=torch.int64)
        position[torch.from_numpy(moved)] = torch.arange(len(moved))
        return cls(after, moved, position)


def slices(n: int, width: int, elements: int) -> Iterator[slice]:
    """Consecutive slices of `n` rows of `width` elements, with at most `elements` elements per slice."""
    step = max(1, elements // max(1, width))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def tensor_of(rows: Rows) -> torch.Tensor:
    """Rows as a tensor, which must not be written to."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store and Arrow's buffers are read-only, which PyTorch warns about.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(rows)


def wide(rows: Rows) -> Float64:
    """Rows as a float64 NumPy array."""
    if isinstance(rows, np.ndarray):
        return rows.astype(np.float64, order="C")
    rows = rows.cpu()
    return rows.double().numpy() if rows.dtype == torch.bfloat16 else rows.numpy().astype(np.float64, order="C")


def _on_host(rows: Rows) -> bool:
    return isinstance(rows, np.ndarray) or rows.device.type == "cpu"


def pair_distances(rows: Rows, others: Float32 | Float64) -> Float64:
    """Squared Euclidean distance of each row to its partner, or of all rows to one vector, in float64.

    A row's distance has the same bits whichever rows accompany it, and on any device.

    Args:
        rows: (n, d).
        others: (n, d), or (d,) to measure every row against one vector.

    Returns:
        (n,) squared distances.
    """
    result = np.empty(len(rows), np.float64)
    if not _on_host(rows):
        for part in slices(len(rows), rows.shape[1], BLOCK_ELEMENTS):
            result[part] = pair_distances(torch.as_tensor(rows[part]).cpu(), others if others.ndim == 1 else others[part])
        return result
    for part in slices(len(rows), rows.shape[1], CACHED_ELEMENTS):
        difference = wide(rows[part])
        difference -= others if others.ndim == 1 else others[part]
        result[part] = np.square(difference, out=difference).sum(axis=1)
    return result


def own_distances(rows: Rows, centroids: Float32, labels: Int32) -> Float64:
    """Squared distances (n,) of rows to the centroids they are labelled with."""
    result = np.empty(len(rows), np.float64)
    for part in slices(len(rows), rows.shape[1], CACHED_ELEMENTS if _on_host(rows) else BLOCK_ELEMENTS):
        result[part] = pair_distances(rows[part], centroids[labels[part]])
    return result


def squared_norms(rows: Rows) -> Float64:
    """Squared Euclidean norms (n,) of rows (n, d), in float64."""
    return pair_distances(rows, np.zeros(rows.shape[1]))


def largest_norm(squared_norms: Float32 | Float64) -> float:
    """An upper bound of the norms, even if the squared norms were rounded to float32."""
    return float(np.sqrt(squared_norms.max(initial=0.0))) * (1 + 1e-6)


def screen(rows: torch.Tensor, centroids: Float32, row_norms: Float32 | Float64) -> Screen:
    """Prepare centroids for comparison with rows of this type and device and of at most these squared norms (n,)."""
    return Screen(centroids, squared_norms(centroids), largest_norm(row_norms), rows.dtype, rows.device)


def assign(rows: Rows, centroids: Float32) -> Assignment:
    """The nearest centroid of every row; ties go to the lowest index.

    Args:
        rows: (n, d) finite vectors, squared norms at most `LARGEST_SQUARED_NORM`.
        centroids: (k, d).
    """
    tensor = tensor_of(rows)
    known = Bounds.empty(len(rows))
    norms = squared_norms(rows)
    known.norms[:] = torch.from_numpy(norms)
    assign_all(tensor, centroids, screen(tensor, centroids, norms), known)
    labels = known.labels.numpy()
    return Assignment(labels, own_distances(rows, centroids, labels))


def assign_all(rows: torch.Tensor, centroids: Float32, screen: Screen, known: Bounds) -> Screen:
    """Find the nearest of all centroids for rows of which only the norms are known.

    For rows far from the origin, differences are small compared to norms, and a product decides only a few rows: a finer one
    is then used.

    Args:
        rows: (n, d).
        centroids: (k, d).
        screen: screen of these centroids.
        known: bounds of these rows; labels and bounds are set in place.

    Returns:
        The screen that was precise enough, for the next rows.
    """
    start = 0
    while start < len(rows):
        stop = min(start + screen.batch, len(rows))
        if _assign_batch(rows[start:stop], centroids, screen, known.part(start, stop)):
            start = stop
        else:
            screen = screen.finer(centroids, squared_norms(centroids))
    return screen


def _assign_batch(rows: torch.Tensor, centroids: Float32, screen: Screen, known: Bounds) -> bool:
    """Assign a batch; returns False, without settling anything, if the products left too many rows undecided."""
    products = screen.products(rows, known.norms.to(rows.device))
    at = torch.arange(len(rows), device=rows.device)
    nearest = _lowest_column(products)
    best = products[at, nearest]
    upper = screen.upper(best)
    reach = screen.reach(upper)
    products[at, nearest] = torch.inf
    lowest = _lowest(products)
    known.labels[:], known.upper[:], known.second[:] = nearest, upper, screen.lower(lowest)
    doubtful = torch.nonzero(lowest <= reach)[:, 0]
    if len(doubtful) > max(DOUBTFUL_ROWS, DOUBTFUL_SHARE * len(rows)) and screen.kind != torch.float64:
        return False
    if len(doubtful):
        products[at, nearest] = best
        row, centroid = torch.nonzero(products[doubtful] <= reach[doubtful, None], as_tuple=True)
        labels, squared = settle(rows[doubtful], centroids, row.cpu().numpy(), centroid.cpu().numpy())
        _note(known, doubtful.cpu(), labels, squared)
    return True


def _note(known: Bounds, at: torch.Tensor, labels: Int32, squared: Float64) -> None:
    """Record settled rows: all that is known of the other centroids is that none is nearer than the row's own."""
    half = torch.from_numpy(squared / 2)
    known.labels[at] = torch.from_numpy(labels)
    known.upper[at] = (half * (1 + 1e-6)).float()
    known.second[at] = (half * (1 - 1e-6)).float()


def settle(rows: Rows, centroids: Float32, row: Int64, centroid: Int64) -> tuple[Int32, Float64]:
    """Find the nearest of each row's candidates by exact comparison; ties go to the lowest index.

    Args:
        rows: (n, d), each with at least one candidate.
        centroids: (k, d).
        row: (p,) ascending row numbers of the candidate pairs.
        centroid: (p,) centroids of the candidate pairs.

    Returns:
        labels (n,) and squared distances (n,).
    """
    if isinstance(rows, torch.Tensor) and not _on_host(rows):
        return settle_on_device(rows, centroids, row, centroid)
    distances = np.empty(len(row), np.float64)
    for part in slices(len(row), rows.shape[1], CACHED_ELEMENTS):
        distances[part] = pair_distances(rows[row[part]], centroids[centroid[part]])
    order = np.lexsort((centroid, distances, row))
    firsts = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
    return centroid[firsts].astype(np.int32), distances[firsts]


def settle_on_device(rows: torch.Tensor, centroids: Float32, row: Int64, centroid: Int64) -> tuple[Int32, Float64]:
    """Like `settle`, on the rows' device; only candidates within the device's rounding error are settled on the host.

    A sum of d squares is off by at most (d + 2) roundoffs of float64 in any order (Higham 2002, Eq. 3.5), on the device as
    on the host, so a candidate farther than the nearest one by more than four times that is not the nearest.
    """
    at, to = (torch.from_numpy(index).to(rows.device) for index in (row, centroid))
    table = torch.from_numpy(centroids).to(rows.device)
    distances = torch.empty(len(at), dtype=torch.float64, device=rows.device)
    for part in slices(len(at), rows.shape[1], DEVICE_BYTES // distances.itemsize):
        distances[part] = (rows[at[part]].double() - table[to[part]]).square_().sum(dim=1)
    least = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    least.scatter_reduce_(0, at, distances, "amin")
    near = distances <= least[at] * (1 + 4 * (rows.shape[1] + 2) * 2.0**-53)
    labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device).scatter_(0, at[near], to[near]).cpu().numpy()
    squared = least.cpu().numpy()
    tied = (near & (torch.bincount(at[near], minlength=len(rows))[at] > 1)).cpu().numpy()
    if tied.any():
        among, place = np.unique(row[tied], return_inverse=True)
        some = rows[torch.from_numpy(among).to(rows.device)].cpu()
        labels[among], squared[among] = settle(some, centroids, place, centroid[tied])
    return labels.astype(np.int32), squared


def reassign(rows: torch.Tensor, move: Move, moved: Screen, everything: Screen, known: Bounds) -> Screen:
    """Find the nearest centroids after a move, from the nearest ones before it.

    If a row's own centroid did not move, or is still nearer than the other unmoved centroids were before, only a moved
    centroid can take the row: one product with the moved centroids decides. The other rows are reassigned from scratch. This
    is Hamerly's (2010) bound on the second nearest centroid, kept tight by comparing with every centroid that moves at all:
    the largest movement, by which it is usually loosened, stays large long after most centroids have come to rest.

    Args:
        rows: (n, d).
        move: the update of the centroids.
        moved: screen of the centroids that moved.
        everything: screen of all centroids after the move.
        known: bounds of these rows for the centroids before the move; updated in place.

    Returns:
        The screen of all centroids, for the next rows.
    """
    lost = []
    for start in range(0, len(rows), moved.batch):
        stop = min(start + moved.batch, len(rows))
        lost.append(_reassign_batch(rows[start:stop], move, moved, known.part(start, stop)) + start)
    anew = torch.cat(lost)
    if len(anew):
        part = Bounds(*(field[anew] for field in known))
        everything = assign_all(rows[anew.to(rows.device)], move.after, everything, part)
        for whole, field in zip(known, part, strict=True):
            whole[anew] = field
    return everything


def _reassign_batch(rows: torch.Tensor, move: Move, screen: Screen, known: Bounds) -> torch.Tensor:
    """Update a batch; returns the rows to reassign from scratch."""
    products = screen.products(rows, known.norms.to(rows.device))
    own = move.position[known.labels.long()]
    followed = torch.nonzero(own >= 0)[:, 0]
    column = own[followed]
    upper = screen.upper(products[followed, column]).cpu()
    products[followed, column] = torch.inf
    known.upper[followed] = upper
    lost = followed[upper >= known.second[followed]]
    reach = screen.reach(known.upper.to(rows.device))
    lowest = _lowest(products)
    known.second[:] = torch.minimum(known.second, screen.lower(lowest).cpu())
    taken = (lowest <= reach).cpu()
    taken[lost] = False
    at = torch.nonzero(taken)[:, 0]
    if len(at):
        row, column = (index.cpu() for index in torch.nonzero(products[at] <= reach[at, None], as_tuple=True))
        row = torch.cat([row, torch.arange(len(at))])
        centroid = torch.cat([torch.from_numpy(move.moved)[column], known.labels[at].long()])
        order = torch.argsort(row, stable=True)
        _note(known, at, *settle(rows[at], move.after, row[order].numpy(), centroid[order].numpy()))
    return lost


def _lowest_column(products: torch.Tensor) -> torch.Tensor:
    """Column (n,) of a lowest entry of each row. NumPy's search is several times faster than PyTorch's on a CPU.

    Non-negative float16 sort like their bits read as integers; if products were rounded below zero, any such entry may be
    returned, which the screen's error bound allows for.
    """
    if products.device.type != "cpu":
        return products.argmin(dim=1)
    ordered = products.view(torch.int16) if products.dtype == torch.float16 else products
    return torch.from_numpy(ordered.numpy().argmin(axis=1))


def _lowest(products: torch.Tensor) -> torch.Tensor:
    """Lowest entry (n,) of each row, or any negative entry if one exists; infinite without columns."""
    if not products.shape[1]:
        return torch.full((len(products),), torch.inf, dtype=products.dtype, device=products.device)
    if products.device.type == "cpu" and products.dtype == torch.float16:
        return products.view(torch.int16).amin(dim=1).view(torch.float16)
    return products.amin(dim=1)


def accumulate(rows: torch.Tensor, labels: torch.Tensor, sums: torch.Tensor, grid: Grid, sign: int = 1) -> None:
    """Add rows to the sums of their clusters, or subtract them; exact, hence the same in any order.

    Args:
        rows: (n, d).
        labels: (n,) in [0, k).
        sums: (k, d) float64, changed in place.
        grid: grid that the rows are rounded to.
        sign: 1 or -1.
    """
    for part in slices(len(rows), rows.shape[1], BLOCK_ELEMENTS // 4 if _on_host(rows) else DEVICE_ELEMENTS):
        values = grid.round(rows[part])
        sums.index_add_(0, labels[part].to(sums.device, torch.int64), values, alpha=sign)
