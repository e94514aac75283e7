"""The crew: scores of shards, made once, bound to the completions they are of."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Silent
from divsel_ray.score.crew import Crew, shard_part
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.scorer import Exchange
from divsel_ray.score.spec import ScorerSpec


@pytest.fixture
def shards(exchanges, tmp_path):
    """Three shards of two prompts each."""
    files = []
    for number in range(3):
        rows = [
            {
                "row_id": row.row_id,
                "sample": 0,
                "prompt_messages": row.messages,
                "gold": row.completion,
                "generated": f"w1 w{number}",
            }
            for row in exchanges[2 * number : 2 * number + 2]
        ]
        files.append(tmp_path / f"shard-{number:05d}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), files[-1])
    return files


def crew_of(encoder, cluster, cpus=1):
    return Crew("rewards", "reward", ScorerSpec("reward", str(encoder), 64, 256), Workers(cpus=cpus), cluster)


def in_one_call(encoder, exchanges, number):
    """(row id, score) of a shard, without a crew."""
    rows = [
        Exchange(f"{row.row_id}:{name}", row.messages, text)
        for row in exchanges[2 * number : 2 * number + 2]
        for name, text in (("gold", row.completion), ("0", f"w1 w{number}"))
    ]
    return zip([row.row_id for row in rows], RewardModel(str(encoder), 64, 256).score(rows), strict=True)


def scores(files):
    return {row["row_id"]: row["score"] for file in files for row in pq.read_table(file).to_pylist()}


def test_shards_are_scored_as_they_come_and_what_is_there_is_not_scored_again(cluster, encoder, exchanges, shards, tmp_path):
    crew, folder = crew_of(encoder, cluster), tmp_path / "score"
    try:
        crew.submit(shards[0], folder, 2)
        crew.submit(shards[1], folder, 2)
        crew.submit(shards[1], folder, 2)
        assert crew.size == 2
        files, facts = crew.score(shards, folder, 2, Silent())
        expected = [score for number in range(3) for score in in_one_call(encoder, exchanges, number)]
        assert scores(files) == pytest.approx(dict(expected), abs=1e-5)
        assert (facts["rows"], facts["missing"], crew.size) == (12, 0, 2)
        stamps = [file.stat().st_mtime_ns for file in files]
        crew.close()
        assert crew.score(shards, folder, 2, Silent()) == (files, facts)
        assert crew.size == 0
        assert [file.stat().st_mtime_ns for file in files] == stamps
    finally:
        crew.close()


def test_scores_of_other_completions_are_not_taken_for_these(shards, tmp_path):
    before = shard_part(shards[0], tmp_path).target
    assert shard_part(shards[0], tmp_path).target == before
    pq.write_table(pq.read_table(shards[1]), shards[0])
    assert shard_part(shards[0], tmp_path).target != before


def test_a_reward_model_that_cannot_be_loaded_is_one_clear_line(cluster, shards, tmp_path):
    (tmp_path / "empty").mkdir()
    crew = crew_of(tmp_path / "empty", cluster)
    with pytest.raises(InputError, match=r"^reward model .*cannot be loaded"):
        crew.score(shards, tmp_path / "score", 1, Silent())
    crew.close()


def test_a_crew_without_a_place_says_what_is_missing(cluster, encoder, shards, tmp_path):
    crew = crew_of(encoder, replace(cluster, placement_timeout_s=1.0), 500)
    with pytest.raises(JobError, match=r"^reward: 1 of 1 workers \(500 CPUs .* missing: up to \d"):
        crew.score(shards, tmp_path / "score", 1, Silent())
    crew.close()
