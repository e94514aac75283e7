from __future__ import annotations

import pytest

from divsel_ray.config import QualityConfig, RewardConfig
from divsel_ray.errors import InputError
from divsel_ray.score.ifd import InstructionFollowingDifficulty
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.spec import ScorerSpec


@pytest.mark.parametrize(("source", "kind", "model"), [("ifd:a/b:c", "ifd", "a/b:c"), ("column:stars", "column", "stars")])
def test_a_quality_source_names_kind_and_model(source, kind, model):
    spec = ScorerSpec.of_quality(QualityConfig(source=source, max_tokens=99))
    assert (spec.kind, spec.model, spec.max_tokens) == (kind, model, 99)


@pytest.mark.parametrize("source", ["none", "reward"])
def test_a_source_without_a_model_is_refused(source):
    with pytest.raises(InputError, match="names no model"):
        ScorerSpec.of_quality(QualityConfig(source=source))


def test_the_judge_has_the_limits_of_the_reward_section():
    spec = ScorerSpec.of_reward(RewardConfig(model="a/b", max_tokens=77, batch_tokens=88), "a/b")
    assert spec == ScorerSpec("reward", "a/b", 77, 88, False)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="expected one of reward, ifd, column"):
        ScorerSpec("judge", "a/b")


def test_a_spec_loads_its_scorer(encoder, language_model):
    assert isinstance(ScorerSpec("reward", str(encoder)).load(), RewardModel)
    assert isinstance(ScorerSpec("ifd", str(language_model)).load(), InstructionFollowingDifficulty)
