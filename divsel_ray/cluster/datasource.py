"""The data that `KMeans` accepts: arrays, Parquet files, Ray Datasets."""

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
Dataset of vectors in a column `embedding` or in its only column."""


@dataclass
class DataSource:
    """Data that was inspected but not yet read; exactly one of `array`, `files` and `dataset` is set.

    Attributes:
        rows: number of rows n.
        dimension: length d of the vectors.
        array: (n, d).
        files: Parquet files.
        dataset: a materialised Ray Dataset.
        column: name of the dataset's vector column.
    """

    rows: int
    dimension: int
    array: Rows | None = None
    files: Files | None = None
    dataset: Any = None
    column: str = ""

    def partitions(self, most: int) -> Sequence[Source]:
        """Sources for the shard actors, at most `most`; an array is put into Ray's object store."""
        if self.array is not None:
            return distributed.put_array(self.array, most)
        if self.files is not None:
            return partition(self.files, most)
        return distributed.put_dataset(self.dataset, self.column, most)

    def name_row(self, index: int) -> str:
        """The name of a row in messages, by its global number."""
        return f"X: row {index}" if self.files is None else name_row(self.files, index)


def open_data(X: Data) -> DataSource:
    """Inspect the data without reading it.

    Raises:
        InputError: its type is not supported, or it does not consist of vectors of one dimension.
    """
    if _is_dataset(X):
        return _open_dataset(X)
    if not _is_array(X):
        files = check_files(list_files(X))
        return DataSource(files.rows, files.dimension, files=files)
    array = to_rows(X, "X")
    return DataSource(array.shape[0], array.shape[1], array=array)


def _is_array(X: Data) -> bool:
    """Whether the data is numbers in memory."""
    return not (_is_dataset(X) or isinstance(X, (str, Path)) or _is_list_of_paths(X))


def _is_dataset(X: Data) -> bool:
    return type(X).__module__.startswith("ray.data")


def _is_list_of_paths(X: Data) -> bool:
    return isinstance(X, (list, tuple)) and bool(X) and all(isinstance(path, (str, Path)) for path in X)


def to_rows(X: Any, name: str) -> Rows:
    """Convert numbers to vectors (n, d), float16 or float32; a bfloat16 tensor stays one.

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
                f"{name}: values are too far from 0 for float32, in which k-means computes; subtract their mean first",
                UserWarning,
                stacklevel=3,
            )
        array = single
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name}: shape {tuple(array.shape)}; expected two dimensions, one vector per row")
    return array.contiguous() if isinstance(array, torch.Tensor) else np.ascontiguousarray(array)


def _merges(array: np.ndarray) -> bool:
    """Whether float32 distinguishes fewer than a thousand values of a feature."""
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
        raise InputError(f"{name}: this {type(X).__name__} is not numeric; expected an array (n, d) of numbers") from None


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
        raise InputError(f"X: columns {names}; expected one named embedding, or a single column")
    first = dataset.take(1)
    vector = np.asarray(first[0][column]) if first else np.empty(0)
    if vector.ndim != 1 or vector.dtype.kind != "f" or not len(vector):
        raise InputError(
            f"X: column {column} contains {type(first[0][column]).__name__ if first else 'no row'}; expected vectors of floats"
        )
    return DataSource(dataset.count(), len(vector), dataset=dataset, column=column)
