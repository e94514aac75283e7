"""Searches over a small static job, and trials written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from divsel_ray.config.tuning import Point, TuningConfig, load_tuning
from divsel_ray.tune.outcome import Trial
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder

ROWS = 90


def write_static(folder: Path) -> Path:
    """A job without rounds whose vectors and qualities are given."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32))
    job = {
        "budget": 12,
        "pool": {"data": str(write_rows(folder / "rows.jsonl", ROWS)), "score_column": "score"},
        "embed": {"model": str(save_encoder(folder / "encoder")), "given": str(folder / "vectors.npy")},
        "cluster": {"k": 4, "max_iter": 5},
        "quality": {"source": "column:score"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def write_search(folder: Path, **changes: object) -> Path:
    """The file of a grid over clusters, of the job `job.yaml` beside it unless another is given."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"job": "job.yaml", "search": {"cluster.k": {"choice": [4, 8]}}, "objective": "vendi", "searcher": "grid", **changes}
    (folder / "search.yaml").write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return folder / "search.yaml"


def search(folder: Path, *overrides: str, **changes: object) -> TuningConfig:
    """A search of an inline job whose files need not exist."""
    job = {"budget": 12, "pool": {"data": "rows.jsonl"}}
    return load_tuning(write_search(folder, **{"job": job, **changes}), overrides)


REFINED = {
    "budget": 12,
    "pool": {"data": "rows.jsonl"},
    "reward": {"model": "reward"},
    "refine": {"rounds": 2, "train": {"model": "lm"}},
}


def trial(
    key: str,
    objective: float | None,
    *,
    state: str = "finished",
    rounds: int = 0,
    settings: Point | None = None,
    **figures: float,
) -> Trial:
    """A trial of `search`, at k = 4 unless other settings are given."""
    known = {} if objective is None or state != "finished" else {"vendi": objective, **figures}
    done = [{"round": number, "vendi": objective or 0.0} for number in range(1, rounds + 1)]
    return Trial(key, settings or {"cluster.k": 4}, state, objective, known, done, 1.0, "no room" if state == "failed" else None)
