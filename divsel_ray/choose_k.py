"""Implementation of `divsel choose-k`: recommend a k for the embeddings of a job or of a folder.

Measures are stored in `<out>/choose_k/<key>/`, one file per k. The key hashes the embeddings and the clustering settings but
not the grid, so a new grid measures only the missing values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from divsel_ray.cluster import rows
from divsel_ray.cluster.criteria import Choice, check_grid, default_grid, elbow, recommend
from divsel_ray.cluster.grid import measure_grid, measured_settings
from divsel_ray.config import Config
from divsel_ray.config.files import load_config, parse_config
from divsel_ray.data.inputs import fingerprint_inputs
from divsel_ray.errors import InputError
from divsel_ray.needs import check_cluster
from divsel_ray.progress import Progress, Silent
from divsel_ray.report.choice import read_choice, write_choice
from divsel_ray.resources import connect
from divsel_ray.stages import Job
from divsel_ray.store import Stage, Store

STAGE, VERSION = "choose_k", 1
__all__ = ["choose_k", "load_settings", "read_choice"]


def load_settings(config: str | Path | None, embeddings: str | Path | None, overrides: Sequence[str]) -> Config:
    """The job's configuration; the defaults if only a folder of embeddings is given.

    Raises:
        InputError: neither is given, or the configuration is invalid.
    """
    if config is not None:
        return load_config(config, overrides)
    if embeddings is None:
        raise InputError("choose-k: nothing to cluster; give a configuration, or a folder of vectors with --embeddings")
    return parse_config(yaml.safe_dump({"budget": 1, "pool": {"data": str(embeddings)}}), "choose-k", overrides)


def choose_k(
    config: Config,
    out: str | Path,
    grid: Sequence[int] | None = None,
    embeddings: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure a grid of k and recommend one; returns the folder of `choose-k.json` (a `Choice`) and `choose-k.html`.

    Args:
        config: configuration of the job. Its pool and embed stages run, or are found in `out`; `cluster.k` is ignored.
        out: the job's run folder.
        grid: values of k, ascending; by default `criteria.default_grid`.
        embeddings: a folder of Parquet files with `row_id` and `embedding` to use instead of the job's own.
        progress: receives messages and progress for the user.

    Raises:
        InputError: the data does not fit the configuration, or the grid does not fit the number of rows.
        JobError: another process is using the run folder, or Ray lost the actors for good.
    """
    store, progress = Store(out), progress or Silent()
    with store.lock():
        source = _of_folder(embeddings, grid) if embeddings is not None else _of_job(config, store, grid, progress)
        grid = grid or default_grid(source.files.rows)
        stage = _stage(config, store, source)
        cached = _is_done(stage, grid)
        if not cached:
            progress.start(STAGE)
            choice = _choose(config, source, grid, stage.start(), progress)
            write_choice(choice, stage.folder)
            stage.commit({"rows": choice.rows, "grid": choice.grid, **asdict(choice.recommendation)})
        facts = stage.facts
        progress.finish(STAGE, f"k = {facts['k']:,} of {len(grid)} candidates", cached=cached)
    return stage.folder


@dataclass(frozen=True)
class _Source:
    """Checked embedding files, their display name, and the key that identifies them."""

    files: rows.Files
    name: str
    key: str


def _of_folder(folder: str | Path, grid: Sequence[int] | None) -> _Source:
    files = rows.check_files(rows.list_files(folder))
    check_grid(grid or default_grid(files.rows), files.rows)
    return _Source(files, str(folder), fingerprint_inputs([Path(path) for path in files.paths], "--embeddings"))


def _of_job(config: Config, store: Store, grid: Sequence[int] | None, progress: Progress) -> _Source:
    job = Job(config, store, progress, connect())
    check_cluster(config, job.hardware)
    records = job.pool()
    pool = job.clean(records)
    count = pool.facts["rows"]
    check_grid(grid or default_grid(count), count)
    stage = job.embeddings(pool, records)
    files = rows.check_files(rows.list_files(stage.files()))
    return _Source(files, f"{', '.join(config.pool.data)} by {config.embed.source}", stage.key)


def _stage(config: Config, store: Store, source: _Source) -> Stage:
    return store.stage(STAGE, VERSION, {**measured_settings(config.cluster), "seed": config.seed}, [source.key])


def _is_done(stage: Stage, grid: Sequence[int]) -> bool:
    return stage.committed and read_choice(stage.folder).grid == list(grid)


def _choose(config: Config, source: _Source, grid: Sequence[int], folder: Path, progress: Progress) -> Choice:
    candidates = measure_grid(source.files.paths, grid, config.cluster, config.seed, folder, connect(), progress)
    return Choice(
        embeddings=source.name,
        rows=source.files.rows,
        dimension=source.files.dimension,
        seed=config.seed,
        settings=measured_settings(config.cluster),
        candidates=candidates,
        elbow=elbow(candidates),
        recommendation=recommend(candidates, source.files.rows),
    )
