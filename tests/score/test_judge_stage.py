from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from divsel_ray.config import JudgeConfig, QualityConfig, Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Silent
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import score_pool
from tests.score.chat_server import Reply, chat_server


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))


def spec(url: str, **values) -> ScorerSpec:
    judge = JudgeConfig(model="m", url=url, prompt_price=1000, output_price=10_000, max_output_tokens=10, **values)
    return ScorerSpec.of_quality(QualityConfig(source="judge", judge=judge))


def test_a_judge_rates_the_pool_within_its_limit_and_pays_for_no_rating_twice(cluster, exchanges, write_pool, tmp_path):
    files, folder, seen = write_pool(exchanges, 20), tmp_path / "q", Notes()
    with chat_server(lambda question, _: Reply("no" if exchanges[3].completion in question else "Rating: 4")) as server:
        # Every question has a few hundred bytes and costs 0.2; the limit lets about half of the rows through.
        with pytest.raises(JobError, match=r"could exceed max_cost 5"):
            score_pool(files, spec(server.url, max_cost=5), folder, cluster, Workers(), seen)
        paid = len(server.questions)
        assert 10 < paid <= 25
        facts = score_pool(files, spec(server.url, max_cost=50), folder, cluster, Workers(), seen)
    # One row holds no rating and was asked for twice.
    assert len(server.questions) == 41
    assert {name: facts[name] for name in ("rows", "missing", "failed", "requests", "prompt_tokens", "output_tokens")} == {
        "rows": 40,
        "missing": 1,
        "failed": 0,
        "requests": 41,
        "prompt_tokens": 4100,
        "output_tokens": 410,
    }
    assert facts["cost"] == pytest.approx(41 * 0.2)
    assert facts["mean"] == 4
    assert seen.notes[0].startswith("judge m: 40 rows to rate, about ")
    assert seen.notes[0].endswith("the limit is 5")
    assert seen.steps[-1][0] == seen.steps[-1][1]
    tables = [pq.read_table(folder / Path(file).name) for file in files]
    assert tables[0].column_names == ["row_id", "quality", "requests", "prompt_tokens", "output_tokens", "failed"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(Path(file).name for file in files)
    with chat_server(lambda *_: Reply()) as server:
        again = score_pool(files, spec(server.url), folder, cluster, Workers(), seen)
        assert server.questions == []
    assert again | {"seconds": 0} == facts | {"seconds": 0}


def test_a_missing_key_ends_the_job_before_anything_starts(cluster, exchanges, write_pool, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    asked = spec("https://example.org/v1", key_variable="NO_SUCH_KEY")
    with pytest.raises(InputError, match="environment variable NO_SUCH_KEY is not set"):
        score_pool(write_pool(exchanges[:2], 2), asked, tmp_path / "q", cluster, Workers(), Silent())
