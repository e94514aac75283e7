"""vLLM in this process: it writes what transformers writes, whatever was trained, and a failed call leaves nothing behind."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from divsel_ray.config import GenerateConfig
from divsel_ray.errors import InputError
from divsel_ray.generate.engine import load_engine
from divsel_ray.generate.requests import Request, complete_each
from divsel_ray.generate.vllm_engine import VllmEngine, settable_rank
from divsel_ray.models.text import encode_prompt
from tests.generate.prompts import PROMPTS, without_weight

CONFIG = GenerateConfig(max_new_tokens=6, max_prompt_tokens=32, shard_size=4, dtype="float32", kv_cache_gib=0.1)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return str(folder)


def renamed(adapter, folder):
    """The adapter with names of layers that its model does not have."""
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("model.layers", "model.blocks"): weight for name, weight in load_file(file).items()}, file)
    return str(folder)


@pytest.mark.parametrize(("rank", "settable"), [(1, 1), (2, 8), (8, 8), (12, 16), (257, 320), (512, 512)])
def test_a_rank_is_rounded_up_to_one_that_vllm_takes(rank, settable):
    assert settable_rank(rank) == settable


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "kind"), [(8, "adapter"), (0, "other")])
def test_vllm_writes_what_transformers_writes_whatever_was_trained(rank, kind, model, request):
    """Greedy, float32: the base model, an adapter or a whole model, the base model again, in one engine."""
    from transformers import AutoTokenizer

    trained, tokenizer = request.getfixturevalue(kind), AutoTokenizer.from_pretrained(model)
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}], 32) for text in PROMPTS]
    found = {}
    for name in ("transformers", "vllm"):
        engine = load_engine(model, CONFIG.model_copy(update={"engine": name}), tokenizer, rank)
        answers = [engine.generate(prompts, range(6), folder) for folder in (None, trained, None)]
        found[name] = [[(one.text.strip(), one.finish_reason) for one in answer] for answer in answers]
    assert found["vllm"] == found["transformers"]
    assert found["vllm"][0] == found["vllm"][2] != found["vllm"][1]
    if kind == "adapter":
        with pytest.raises(InputError, match="vLLM knows none of the adapter's layers"):
            engine.generate(prompts, range(6), renamed(trained, request.getfixturevalue("tmp_path")))
        assert [(one.text.strip(), one.finish_reason) for one in engine.generate(prompts, range(6), None)] == found["vllm"][0]


@pytest.mark.slow
def test_vllm_goes_on_after_a_prompt_it_refuses_and_never_serves_weights_half_loaded(model, other, tmp_path):
    """A prompt beyond the model's length between two good ones, and a model without one of its weights."""
    engine = VllmEngine(model, CONFIG, [], 0)
    requests = [Request(row, 0, prompt, row) for row, prompt in enumerate([[2, 8, 9], [2] * 400, [2, 10, 11]])]
    expected = engine.generate([request.prompt for request in requests[::2]], [0, 2], None)
    found = complete_each(engine, requests, None)
    assert [completion.finish_reason == "error" for completion in found] == [False, True, False]
    assert found[::2] == expected
    partial = without_weight(other, tmp_path / "partial", "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match="up_proj"):
        complete_each(engine, requests, partial)
    assert complete_each(engine, requests[::2], None) == expected
