from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from divsel_ray.config import QualityConfig, Workers
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.pipeline import plan_job, run_job
from divsel_ray.progress import Silent
from divsel_ray.score.sample import draw_per_cluster
from divsel_ray.score.scorer import Exchange
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import UNSCORED, draw_wanted, score_pool
from divsel_ray.verify import verify_run
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder, save_reward_model

COUNTS = np.array([13, 8, 1])


def row_ids(count: int) -> list[str]:
    return sorted(hashlib.md5(str(at).encode()).hexdigest() for at in range(count))


def write_clusters(folder, cluster: list[int], files: int = 2) -> list[str]:
    ids, paths = row_ids(len(cluster)), []
    folder.mkdir(exist_ok=True)
    for at in range(files):
        paths.append(str(folder / f"part-{at}.parquet"))
        pq.write_table(pa.table({"row_id": ids[at::files], "cluster": cluster[at::files]}), paths[-1])
    return paths


def test_every_cluster_gives_its_count_and_no_file_layout_changes_which(tmp_path):
    cluster = [0] * 50 + [1] * 29 + [2] * 1
    drawn, others = draw_per_cluster(write_clusters(tmp_path / "a", cluster), COUNTS, seed=0)
    of_row = dict(zip(row_ids(80), cluster, strict=True))
    counts = np.bincount([of_row[row.decode()] for row in drawn])
    assert counts.tolist() == [13, 8, 1]
    assert sorted([*drawn, *others]) == [row.encode() for row in row_ids(80)]
    again, _ = draw_per_cluster(write_clusters(tmp_path / "b", cluster, files=5)[::-1], COUNTS, seed=0)
    assert again.tolist() == drawn.tolist()
    assert draw_per_cluster(write_clusters(tmp_path / "a", cluster), COUNTS, seed=1)[0].tolist() != drawn.tolist()


def test_a_larger_draw_holds_the_smaller_one_and_the_largest_is_all(tmp_path):
    files = write_clusters(tmp_path / "a", [0] * 50 + [1] * 30)
    small, large, whole = (
        set(draw_per_cluster(files, np.array(counts), seed=0)[0].tolist()) for counts in ([7, 3], [19, 12], [500, 30])
    )
    assert small < large < whole
    assert len(whole) == 80


def test_only_the_rows_drawn_are_scored(cluster, encoder, exchanges, write_pool, tmp_path):
    rows = [Exchange(row_id, row.messages, row.completion) for row_id, row in zip(row_ids(40), exchanges, strict=True)]
    wanted = draw_wanted(write_clusters(tmp_path / "c", [0] * 30 + [1] * 10), np.array([6, 2]), 0, tmp_path / "q")
    pool, spec = write_pool(rows, 15), ScorerSpec("reward", str(encoder), 64, 256)
    facts = score_pool(pool, spec, tmp_path / "q", cluster, Workers(count=1), Silent(), wanted)
    assert facts["rows"] == 8
    scored = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "q").glob("*.parquet"))])
    others = pq.read_table(tmp_path / "q" / UNSCORED)
    assert len(scored) == 8
    assert sorted([*scored["row_id"].to_pylist(), *others["row_id"].to_pylist()]) == row_ids(40)


@pytest.mark.parametrize("source", ["none", "column:stars", "given:file.parquet"])
def test_sources_that_score_nothing_refuse_it(source):
    with pytest.raises(ValidationError, match="oversample: reduces scoring, but source"):
        QualityConfig(source=source, oversample=2)


def job(tmp_path, **quality) -> dict:
    return {
        "budget": 20,
        "pool": {"data": str(write_rows(tmp_path / "rows.jsonl", 120)), "partition_bytes": 2048},
        "embed": {"model": str(save_encoder(tmp_path / "encoder"))},
        "cluster": {"k": 4},
        "quality": {"source": f"reward:{save_reward_model(tmp_path / 'reward')}", "max_tokens": 64, **quality},
    }


@pytest.mark.parametrize("oversample", [1, 2])
def test_a_job_selects_exactly_its_budget_of_the_scored_rows_and_can_be_verified(cluster, tmp_path, oversample):
    folder = run_job(build_config(job(tmp_path, oversample=oversample), "test"), tmp_path / "run")
    selected = set(pq.read_table(folder / "selection.parquet")["row_id"].to_pylist())
    scored = pa.concat_tables([pq.read_table(path) for path in folder.glob("quality/*/*.parquet")])["row_id"].to_pylist()
    assert len(selected) == 20
    assert 20 * oversample <= len(scored) < 20 * oversample + 4
    assert selected <= set(scored)
    assert verify_run(folder)["verified"] == 20


def test_the_quality_of_as_many_rows_is_the_same_stage(tmp_path):
    def key(budget: int, oversample: float) -> str:
        config = build_config(job(tmp_path, oversample=oversample) | {"budget": budget}, "test")
        return next(stage.key for stage, _ in plan_job(config, tmp_path / "run") if stage.name == "quality")

    assert key(20, 2) == key(40, 1)
    assert key(20, 2) != key(20, 1)


def test_a_budget_that_is_no_number_of_pool_rows_refuses_it(tmp_path):
    values = job(tmp_path, oversample=2) | {"budget_unit": "tokens"}
    with pytest.raises(InputError, match=r"quality\.oversample: needs a budget in rows"):
        build_config(values, "test")
