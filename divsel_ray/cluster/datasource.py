"""What `KMeans` takes as data: arrays, Parquet files, Ray Datasets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from divsel_ray.cluster import distributed
from divsel_ray.cluster.actors import Source
from divsel_ray.cluster.kernels import Rows
from divsel_ray.cluster.rows import Files, check_files, list_files, name_row, partition
from divsel_ray.errors import InputError

Data = Any
"""An array or tensor (n, d); a folder of Parquet files, or a list of them (columns `row_id` and `embedding`); or a Ray
Dataset with a column `embedding`, or one column, of vectors."""


@dataclass
class DataSource:
    """Data that was looked at but not yet read; exactly one of `array`, `files` and `dataset` is set.

    Attributes:
        rows: n.
        dimension: d.
        array: (n, d).
        files: Parquet files.
        dataset: a materialised Ray Dataset.
        column: of its vectors.
    """

    rows: int
    dimension: int
    array: Rows | None = None
    files: Files | None = None
    dataset: Any = None
    column: str = ""

    def partitions(self, most: int) -> Sequence[Source]:
        """What the shard actors are started with, at most so many; an array goes into Ray's object store."""
        if self.array is not None:
            return distributed.put_array(self.array, most)
        if self.files is not None:
            return partition(self.files, most)
        return distributed.put_dataset(self.dataset, self.column, most)

    def name_row(self, index: int) -> str:
        """How messages call a row, given its global number."""
        return f"X: row {index}" if self.files is None else name_row(self.files, index)


def open_data(X: Data) -> DataSource:
    """Look at the data.

    Raises:
        InputError: it is of another kind, or holds something else than vectors of one dimension.
    """
    if _is_dataset(X):
        return _open_dataset(X)
    if not _is_array(X):
        files = check_files(list_files(X))
        return DataSource(files.rows, files.dimension, files=files)
    array = to_rows(X, "X")
    return DataSource(array.shape[0], array.shape[1], array=array)


def _is_array(X: Data) -> bool:
    """Whether these are numbers in memory."""
    return not (_is_dataset(X) or isinstance(X, (str, Path)) or _is_list_of_paths(X))


def _is_dataset(X: Data) -> bool:
    return type(X).__module__.startswith("ray.data")


def _is_list_of_paths(X: Data) -> bool:
    return isinstance(X, (list, tuple)) and bool(X) and all(isinstance(path, (str, Path)) for path in X)


def to_rows(X: Any, name: str) -> Rows:
    """Numbers as vectors (n, d), float16 or float32; a bfloat16 tensor stays one.

    Raises:
        InputError: they are not numbers, or not in two dimensions.
    """
    if isinstance(X, torch.Tensor):
        tensor = X.detach().cpu()
        array: Rows = tensor if tensor.dtype == torch.bfloat16 else tensor.numpy()
    else:
        array = _to_array(X, name)
    if isinstance(array, np.ndarray) and array.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        if array.ndim == 2 and _merges(array):
            warnings.warn(
                f"{name} is computed with in float32, which its values lie too far from 0 for: take their mean off first",
                UserWarning,
                stacklevel=3,
            )
        array = single
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name} has shape {tuple(array.shape)}; expected two dimensions, one vector per row")
    return array.contiguous() if isinstance(array, torch.Tensor) else np.ascontiguousarray(array)


def _merges(array: np.ndarray) -> bool:
    """Whether float32 tells fewer than a thousand values of a feature apart, where float64 told more."""
    if not len(array):
        return False
    spread, largest = np.ptp(array, axis=0), np.abs(array).max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        step = np.spacing(largest.astype(np.float32)).astype(np.float64)
    return bool(((spread > 0) & (spread < 1000 * step)).any())


def _to_array(X: Any, name: str) -> Any:
    try:
        array = np.asarray(X)
        return array if array.dtype.kind == "f" else array.astype(np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {type(X).__name__}; expected numbers, an array (n, d)") from None


def _open_dataset(X: Any) -> DataSource:
    options = X.context.execution_options
    kept, options.preserve_order = options.preserve_order, True
    try:
        dataset = X.materialize()
    finally:
        options.preserve_order = kept
    names = dataset.columns() or []
    column = "embedding" if "embedding" in names else names[0] if len(names) == 1 else None
    if column is None:
        raise InputError(f"X has the columns {names}; expected one called embedding, or a single one")
    first = dataset.take(1)
    vector = np.asarray(first[0][column]) if first else np.empty(0)
    if vector.ndim != 1 or vector.dtype.kind != "f" or not len(vector):
        raise InputError(
            f"X: column {column} holds {type(first[0][column]).__name__ if first else 'no row'}; expected vectors of floats"
        )
    return DataSource(dataset.count(), len(vector), dataset=dataset, column=column)
