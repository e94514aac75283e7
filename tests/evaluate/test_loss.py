from pathlib import Path

import numpy as np
import pytest

from divsel_ray.errors import InputError
from divsel_ray.evaluate.loading import LoadedModel
from divsel_ray.evaluate.loss import LossMeter
from divsel_ray.train.encoding import encode
from divsel_ray.train.loss import mean_loss
from tests.evaluate.worlds import VOCABULARY, save_adapter, save_indifferent_model
from tests.models.tiny import save_language_model
from tests.train.rows import conversations

HOW = {"chat_template": None, "max_tokens": 64, "batch_tokens": 100}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"), base)


def test_a_row_costs_the_logarithm_of_the_vocabulary_per_token_of_its_completion_and_end(tmp_path):
    rows = conversations(4)
    nats, tokens = LossMeter(str(save_indifferent_model(tmp_path)), **HOW).measure(None, rows)

    words = [len(row.messages[-1]["content"].split()) for row in rows]
    assert tokens.tolist() == [count + 1 for count in words]
    np.testing.assert_allclose(nats, tokens * np.log(VOCABULARY), rtol=1e-6)


def test_a_row_is_the_sum_of_what_the_model_gives_its_tokens_one_by_one(base):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = conversations(6)
    nats, _ = LossMeter(str(base), **HOW).measure(None, rows)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for row, loss in zip(rows, nats, strict=True):
        words = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
        prompt = [2, *words(f"User: {row.messages[0]['content']}\nAssistant:")]
        ids = [*prompt, *words(row.messages[1]["content"]), 3]
        odds = model(torch.tensor([ids])).logits[0].log_softmax(-1).detach()
        expected = -sum(float(odds[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))
        assert loss == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_what_training_reports(base):
    rows = conversations(7)
    nats, tokens = LossMeter(str(base), **HOW).measure(None, rows)

    loaded = LoadedModel(str(base))
    with loaded.using(None) as model:
        reported = mean_loss(model, encode(loaded.tokenizer, rows, HOW["max_tokens"]), 0, 4)
    assert nats.sum() / tokens.sum() == pytest.approx(reported, rel=1e-6)


def test_batches_and_the_order_of_rows_do_not_matter(base):
    rows = conversations(9)
    one, _ = LossMeter(str(base), **{**HOW, "batch_tokens": 1}).measure(None, rows)
    many, _ = LossMeter(str(base), **{**HOW, "batch_tokens": 4000}).measure(None, rows[::-1])

    np.testing.assert_allclose(one, many[::-1], rtol=1e-5)


def test_an_adapter_counts_as_if_it_were_merged_and_then_the_base_is_as_before(base, adapter, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    save_language_model(tmp_path)
    merged.save_pretrained(tmp_path)

    rows, meter = conversations(5), LossMeter(str(base), **HOW)
    before, adapted, after = (meter.measure(one, rows)[0] for one in (None, adapter, None))

    np.testing.assert_allclose(adapted, LossMeter(str(tmp_path), **HOW).measure(None, rows)[0], rtol=1e-4)
    assert np.abs(adapted - before).min() > 0.01
    assert (before == after).all()


def test_layers_that_an_adapter_replaces_do_not_stay(base, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = save_adapter(tmp_path, base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    file = folder / "adapter_model.safetensors"
    weights = {name: torch.zeros_like(one) if "lm_head" in name else one for name, one in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})

    rows, meter = conversations(3), LossMeter(str(base), **HOW)
    before, replaced, after = (meter.measure(one, rows) for one in (None, folder, None))

    np.testing.assert_allclose(replaced[0], replaced[1] * np.log(VOCABULARY), rtol=1e-5)
    assert (before[0] == after[0]).all()


def test_a_chat_template_renders_the_prompt_but_is_not_part_of_the_loss(base):
    rows = conversations(3)
    plain, tokens = LossMeter(str(base), **HOW).measure(None, rows)
    other, same = LossMeter(str(base), **{**HOW, "chat_template": "story about {{ messages[0].content }} :"}).measure(None, rows)

    assert tokens.tolist() == same.tolist()
    assert (plain != other).all()


def test_a_folder_without_an_adapter_and_one_of_another_model_are_told(base, tmp_path):
    from transformers import AutoModelForCausalLM

    meter = LossMeter(str(base), **HOW)
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        meter.measure(base, conversations(1))

    wide = save_language_model(tmp_path / "wide")
    model = AutoModelForCausalLM.from_pretrained(wide)
    model.config.intermediate_size = 128
    AutoModelForCausalLM.from_config(model.config).save_pretrained(wide)
    with pytest.raises(InputError, match="does not fit"):
        meter.measure(save_adapter(tmp_path / "other", wide), conversations(1))


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        LossMeter(str(tmp_path / "nowhere"), **HOW).measure(None, conversations(1))
