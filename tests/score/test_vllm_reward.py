from __future__ import annotations

import shutil

import numpy as np
import pytest

from divsel_ray.errors import InputError
from divsel_ray.score.reward_model import RewardModel
from divsel_ray.score.vllm_reward import VllmRewardModel


@pytest.mark.slow
def test_vllm_gives_the_logits_of_transformers(chat_reward, exchanges):
    pytest.importorskip("vllm")
    expected = RewardModel(str(chat_reward), 64, 512).score(exchanges)
    found = VllmRewardModel(str(chat_reward), 64, 512).score(exchanges)
    assert np.std(expected) > 0.1
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_model_without_a_chat_template_is_refused(chat_reward, tmp_path):
    pytest.importorskip("vllm")
    shutil.copytree(chat_reward, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template, which backend vllm needs"):
        VllmRewardModel(str(tmp_path / "plain"), 64, 512)
