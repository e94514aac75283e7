"""What makes a search the one whose trials lie in its folder already."""

from __future__ import annotations

import numpy as np

from divsel_ray.config.tuning import load_tuning
from divsel_ray.pipeline import plan_job
from divsel_ray.tune import search
from tests.tune.searches import ROWS, write_search, write_static


def test_a_search_over_changed_data_is_another_search(tmp_path):
    tuning = load_tuning(write_search(tmp_path, job=str(write_static(tmp_path))))

    def name() -> str:
        return search._name(tuning, 1, plan_job(tuning.config_of({"cluster.k": 4}), tmp_path / "out"))

    before = name()
    assert before == name()
    np.save(tmp_path / "vectors.npy", np.random.default_rng(1).normal(size=(ROWS, 8)).astype(np.float32))
    assert name() != before
