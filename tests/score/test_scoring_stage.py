from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import FitRewardConfig, RewardConfig, Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Silent
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.sample import draw_exchanges
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import build_reward, reward_reference, score_pool


class Seen(Silent):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str]] = []

    def advance(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))


def qualities(folder: Path, files: list[str]) -> dict[str, float | None]:
    tables = [pq.read_table(folder / Path(file).name) for file in files]
    assert all(table.schema.names == ["row_id", "quality"] for table in tables)
    return {row["row_id"]: row["quality"] for table in tables for row in table.to_pylist()}


def test_every_pool_row_gets_the_scorers_number(cluster, encoder, exchanges, write_pool, tmp_path):
    files, seen = write_pool(exchanges, 15), Seen()
    spec = ScorerSpec("reward", str(encoder), 64, 256)
    facts = score_pool(files, spec, tmp_path / "q", cluster, Workers(count=2), seen)
    model = RewardModel(str(encoder), 64, 256)
    expected = {
        row.row_id: score
        for at in (0, 15, 30)
        for row, score in zip(exchanges[at : at + 15], model.score(exchanges[at : at + 15]), strict=True)
    }
    found = qualities(tmp_path / "q", files)
    assert found == pytest.approx(expected, abs=1e-6)
    values = np.array(list(expected.values()))
    assert (facts["rows"], facts["missing"]) == (40, 0)
    assert facts["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert facts["sd"] == pytest.approx(values.std(), abs=1e-6)
    assert seen.steps[-1] == (40, 40, "rows")
    assert len(seen.steps) == 3


def test_a_finished_partition_is_not_scored_again(cluster, encoder, exchanges, write_pool, tmp_path):
    files = write_pool(exchanges, 20)
    done = tmp_path / "q" / Path(files[0]).name
    done.parent.mkdir()
    marked = pa.table({"row_id": [row.row_id for row in exchanges[:20]], "quality": [7.0] * 20})
    pq.write_table(marked, done)
    stamp = done.stat().st_mtime_ns
    facts = score_pool(files, ScorerSpec("reward", str(encoder), 64, 256), tmp_path / "q", cluster, Workers(count=1), Silent())
    found = qualities(tmp_path / "q", files)
    assert [found[row.row_id] for row in exchanges[:20]] == [7.0] * 20
    assert 7.0 not in [found[row.row_id] for row in exchanges[20:]]
    assert done.stat().st_mtime_ns == stamp
    assert facts["rows"] == 40


def test_a_pool_column_is_a_quality_without_a_model(cluster, exchanges, write_pool, tmp_path):
    files = write_pool(exchanges[:6], 3)
    facts = score_pool(files, ScorerSpec("column", "stars"), tmp_path / "q", cluster, Workers(count=1), Silent())
    assert list(qualities(tmp_path / "q", files).values()) == [None, 1.0, 2.0, None, 1.0, 2.0]
    assert (facts["rows"], facts["missing"], facts["mean"], facts["sd"]) == (6, 2, 1.5, 0.5)


def test_a_pool_without_scores_is_refused_for_a_column_source(cluster, tmp_path):
    file = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({"row_id": ["a"]}), file)
    with pytest.raises(InputError, match=r"^quality\.source column:stars: .*pool\.score_column: stars"):
        score_pool([file], ScorerSpec("column", "stars"), tmp_path / "q", cluster, Workers(count=1), Silent())


def test_a_model_that_cannot_be_loaded_is_one_clear_line(cluster, exchanges, write_pool, tmp_path):
    spec = ScorerSpec("reward", str(tmp_path), 64, 256)
    with pytest.raises(InputError, match=r"^reward model .*cannot be loaded"):
        score_pool(write_pool(exchanges[:2], 2), spec, tmp_path / "q", cluster, Workers(count=1), Silent())


def test_a_pool_of_which_no_row_has_a_score_ends_the_job(cluster, exchanges, write_pool, tmp_path):
    files = write_pool(exchanges[:1], 1)
    with pytest.raises(JobError, match="none of 1 rows could be scored"):
        score_pool(files, ScorerSpec("column", "stars"), tmp_path / "q", cluster, Workers(count=1), Silent())


def test_the_reward_model_is_fitted_once_and_then_judges(cluster, encoder, exchanges, write_pool, tmp_path):
    files, seen = write_pool(exchanges, 20), Seen()
    config = RewardConfig(fit=FitRewardConfig(base=str(encoder), prompts=16, held_out=8, max_tokens=32))
    folder = tmp_path / "reward"
    facts = build_reward(files, config, 0, folder, cluster, seen)
    assert facts["held_out_pairs"] <= 24
    assert seen.steps[-1] == (2, 2, "steps")
    assert sorted(path.name for path in folder.iterdir()) == ["fit.json", "model"]
    (folder / "fit.json").write_text(json.dumps({"kept": True}))
    assert build_reward(files, config, 0, folder, cluster, seen) == {"kept": True}
    assert np.isfinite(RewardModel(reward_reference(config, folder), 32, 256).score(exchanges)).all()


def test_a_pool_too_small_for_a_fit_is_one_clear_line(cluster, encoder, exchanges, write_pool, tmp_path):
    config = RewardConfig(fit=FitRewardConfig(base=str(encoder)))
    with pytest.raises(InputError, match=r"^reward\.fit: the pool has 5 usable rows"):
        build_reward(write_pool(exchanges[:5], 5), config, 0, tmp_path / "reward", cluster, Silent())


def test_rows_to_fit_on_depend_on_ids_and_seed_not_on_the_partitions(exchanges, write_pool):
    whole = draw_exchanges(write_pool(exchanges, 40), 10, seed=0)
    split = draw_exchanges(write_pool(exchanges[::-1], 7), 10, seed=0)
    assert whole == split
    assert [row.row_id for row in whole] == sorted(row.row_id for row in whole)
    assert draw_exchanges(write_pool(exchanges, 40), 10, seed=1) != whole
    originals = {row.row_id: row for row in exchanges}
    assert all(
        row.completion == originals[row.row_id].completion and row.messages == originals[row.row_id].messages for row in whole
    )
