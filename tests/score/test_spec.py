from __future__ import annotations

import pytest
from pydantic import ValidationError

from divsel_ray.config import FitRewardConfig, JudgeConfig, QualityConfig, RewardConfig
from divsel_ray.errors import InputError
from divsel_ray.score.ifd import InstructionFollowingDifficulty
from divsel_ray.score.judge import Judge
from divsel_ray.score.perplexity import Perplexity
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.spec import ScorerSpec
from divsel_ray.score.stage import reward_reference

JUDGE = JudgeConfig(model="m", url="http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("source", "kind", "model"),
    [
        ("ifd:a/b:c", "ifd", "a/b:c"),
        ("column:stars", "column", "stars"),
        ("perplexity:a/b", "perplexity", "a/b"),
        ("deita", "deita", "hkust-nlp/deita-complexity-scorer,hkust-nlp/deita-quality-scorer"),
        ("deita:a/b,c/d", "deita", "a/b,c/d"),
        ("deita: a/b , c/d", "deita", "a/b,c/d"),
    ],
)
def test_a_quality_source_names_kind_and_model(source, kind, model):
    spec = ScorerSpec.of_quality(QualityConfig(source=source, max_tokens=99))
    assert (spec.kind, spec.model, spec.max_tokens) == (kind, model, 99)


@pytest.mark.parametrize("source", ["none", "reward"])
def test_a_source_without_a_model_is_refused(source):
    with pytest.raises(InputError, match="names no model"):
        ScorerSpec.of_quality(QualityConfig(source=source))


@pytest.mark.parametrize(
    ("values", "kind", "model"),
    [
        ({"model": "a/b"}, "reward", "a/b"),
        ({"perplexity": "a/lm"}, "log_perplexity", "a/lm"),
        ({"judge": JUDGE}, "judge", "m"),
        ({"fit": FitRewardConfig()}, "reward", "folder/model"),
    ],
)
def test_every_reward_section_has_its_scorer_with_the_limits_of_the_section(tmp_path, values, kind, model):
    config = RewardConfig(max_tokens=77, batch_tokens=88, **values)
    spec = ScorerSpec.of_reward(config, reward_reference(config, tmp_path / "folder"))
    assert (spec.kind, spec.max_tokens, spec.batch_tokens) == (kind, 77, 88)
    assert spec.model.endswith(model)


def test_perplexity_as_a_quality_points_the_other_way():
    spec = ScorerSpec.of_reward(RewardConfig(perplexity="a/b"), "a/b")
    assert spec.as_quality().kind == "perplexity"
    assert ScorerSpec("reward", "a/b").as_quality() == ScorerSpec("reward", "a/b")


def test_what_changes_a_score_is_part_of_its_identity(tmp_path):
    def identity(**values) -> list[str]:
        judge = JudgeConfig(model="m", **values)
        return ScorerSpec.of_quality(QualityConfig(source="judge", judge=judge)).identity()

    (tmp_path / "t.txt").write_text("{prompt} {completion}")
    same = {"key_variable": "K", "concurrency": 1, "retries": 0, "timeout_s": 1, "prompt_price": 1, "max_cost": 2}
    assert identity(**same) == identity()
    others = [{"url": "http://x/v1"}, {"highest": 5}, {"max_output_tokens": 9}, {"template": str(tmp_path / "t.txt")}]
    assert len({tuple(identity(**values)) for values in [{}, *others]}) == 5
    named = [ScorerSpec(kind, "a/b").identity() for kind in ("reward", "perplexity", "log_perplexity")]
    assert named == [["a/b"], ["perplexity", "a/b"], ["log_perplexity", "a/b"]]
    assert ScorerSpec("reward", "a/b", backend="vllm").identity() == ["vllm", "a/b"]
    assert ScorerSpec("deita", "a/b,c/d").identity() == ["deita", "a/b", "c/d"]


def test_only_what_a_scorer_heeds_is_among_its_limits():
    judge = ScorerSpec.of_quality(QualityConfig(source="judge", judge=JUDGE, max_tokens=99))
    assert judge.limits == {"max_tokens": 99}
    assert ScorerSpec("reward", "a/b", 64, 256).limits == {"max_tokens": 64, "batch_tokens": 256}
    assert ScorerSpec("column", "stars").limits == {}


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="expected one of reward, ifd, perplexity"):
        ScorerSpec("oracle", "a/b")


@pytest.mark.parametrize("values", [{}, {"model": "a/b", "perplexity": "c/d"}, {"perplexity": "c/d", "backend": "vllm"}])
def test_a_reward_section_names_one_kind_and_vllm_runs_models_alone(values):
    with pytest.raises(ValidationError):
        RewardConfig(**values)


def test_a_spec_loads_its_scorer(encoder, language_model):
    assert isinstance(ScorerSpec("reward", str(encoder)).load(), RewardModel)
    assert isinstance(ScorerSpec("ifd", str(language_model)).load(), InstructionFollowingDifficulty)
    assert isinstance(ScorerSpec("perplexity", str(language_model)).load(), Perplexity)
    assert isinstance(ScorerSpec.of_quality(QualityConfig(source="judge", judge=JUDGE)).load(), Judge)
