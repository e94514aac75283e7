"""The scorers of a whole job: what cannot work is refused at once, and what does not count changes no stage."""

from __future__ import annotations

import pytest

from divsel_ray import pipeline
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from divsel_ray.generate import engine
from divsel_ray.pipeline import plan_job, run_job
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder, save_language_model

LOCAL = {"model": "m", "url": "http://127.0.0.1:1/v1"}
REMOTE = {"model": "m", "url": "https://example.org/v1", "key_variable": "NO_SUCH_KEY"}
QUESTION = LOCAL | {"template": "nowhere.txt"}


@pytest.fixture
def job(tmp_path):
    """Settings of a job with rounds, some of them replaced."""
    refine = {
        "rounds": 2,
        "train": {"model": str(save_language_model(tmp_path / "lm"))},
        "generate": {"engine": "transformers"},
    }
    values = {
        "budget": 10,
        "pool": {"data": str(write_rows(tmp_path / "rows.jsonl", 30))},
        "embed": {"model": str(save_encoder(tmp_path / "encoder"))},
        "cluster": {"k": 2},
    }

    def build(refined: dict | None = None, **changes) -> dict:
        return values | ({} if refined is None else {"refine": refine | refined}) | changes

    return build


def refused(values, tmp_path, monkeypatch) -> str:
    """The line that a job is refused with before it has anything."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setattr(pipeline, "connect", lambda: pytest.fail("a cluster was started"))
    with pytest.raises(InputError) as error:
        run_job(build_config(values, "test"), tmp_path / "run")
    return str(error.value)


@pytest.mark.parametrize(
    ("judge", "message"), [(REMOTE, "environment variable NO_SUCH_KEY is not set"), (QUESTION, "nowhere.txt: no such file")]
)
@pytest.mark.parametrize("place", ["quality", "reward", "second"])
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_starts(job, tmp_path, monkeypatch, place, judge, message):
    other = {"perplexity": "m"}
    values = {
        "quality": job(quality={"source": "judge", "judge": judge}),
        "reward": job(reward={"judge": judge}, quality={"source": "reward"}),
        "second": job({"second": {"judge": judge}}, reward=other),
    }[place]
    said = refused(values, tmp_path, monkeypatch)
    assert said.startswith(f"{'refine.second' if place == 'second' else place}.judge")
    assert message in said


def test_vllm_that_is_missing_is_named_by_its_setting_before_anything_starts(job, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    model = {"model": "m", "backend": "vllm"}
    scoring = job(reward=model, quality={"source": "reward"})
    assert refused(scoring, tmp_path, monkeypatch).startswith("reward.backend: vllm is not installed")
    second = job({"second": model}, reward={"perplexity": "m"})
    assert refused(second, tmp_path, monkeypatch).startswith("refine.second.backend: vllm is not installed")
    generating = job({"generate": {"engine": "vllm"}}, reward={"perplexity": "m"})
    assert refused(generating, tmp_path, monkeypatch).startswith("refine.generate.engine: vllm is not installed")


def test_a_scorer_that_is_not_used_is_neither_required_nor_fitted(job, tmp_path, monkeypatch):
    class ConnectedError(Exception):
        pass

    def connected():
        raise ConnectedError

    monkeypatch.setattr(pipeline, "connect", connected)
    with pytest.raises(ConnectedError):
        run_job(build_config(job(reward={"judge": REMOTE}), "test"), tmp_path / "run")
    fit = {"fit": {"base": str(tmp_path / "encoder")}}
    assert "reward" not in stages(job(reward=fit), tmp_path)
    assert "reward" in stages(job(reward=fit, quality={"source": "reward"}), tmp_path)
    assert "reward" in stages(job({}, reward=fit), tmp_path)


def stages(values, tmp_path) -> dict[str, str]:
    """Keys of a job's stages by name."""
    return {stage.name: stage.key for stage, _ in plan_job(build_config(values, "test"), tmp_path / "run")}


def test_batches_that_a_judge_never_sees_do_not_have_it_paid_again(job, tmp_path):
    def keys(batch_tokens: int, max_tokens: int = 512) -> list[str]:
        limits = {"batch_tokens": batch_tokens, "max_tokens": max_tokens}
        judged = {"judge": LOCAL, **limits}
        found = stages(job({"second": judged}, reward=judged, quality={"source": "judge", **judged}), tmp_path)
        return [found["quality"], found["round-1/score"]]

    assert keys(4096) == keys(2048)
    assert all(new != old for new, old in zip(keys(4096, 64), keys(4096), strict=True))


def test_batches_of_a_model_that_computes_scores_are_part_of_them(job, tmp_path):
    def key(batch_tokens: int) -> str:
        return stages(job(quality={"source": f"ifd:{tmp_path / 'lm'}", "batch_tokens": batch_tokens}), tmp_path)["quality"]

    assert key(4096) != key(2048)
