"""The fleet: one start for all rounds, shards written as they are done, engines that die, stand still or do not load."""

import os
import signal
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from divsel_ray.actors import start_actor
from divsel_ray.config import GenerateConfig, TrainConfig, Workers
from divsel_ray.errors import InputError, JobError
from divsel_ray.generate import stage
from divsel_ray.generate.engine import Completion
from divsel_ray.generate.stage import EngineSettings, Fleet, GenerateActor, read_chat_template
from divsel_ray.progress import Silent
from tests.generate.prompts import PROMPTS

CONFIG = GenerateConfig(engine="transformers", max_new_tokens=6, max_prompt_tokens=32, shard_size=4, dtype="float32")


@pytest.fixture(scope="module")
def fleet(model, cluster):
    fleet = Fleet(EngineSettings(model, CONFIG, 8, 0), cluster)
    yield fleet
    fleet.close()


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path)


def write_prompts(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"row_id": f"{i:032x}", "messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "word " * 20}]}
        for i, p in enumerate(PROMPTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    return folder / "prompts.parquet"


def written(folder):
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("shard-*.parquet"))]).to_pylist()
    assert all(row["gold"] == " ".join(["word"] * 6) for row in table)
    return [(row["row_id"], row["generated"]) for row in table]


def test_finished_shards_are_told_of_at_once_and_not_generated_again(fleet, prompts, tmp_path):
    told = []

    def finished(shard):
        told.append((shard.name, shard.exists()))

    facts = fleet.generate(prompts, None, tmp_path, Silent(), finished)
    assert (facts["rows"], facts["completions"], facts["errors"]) == (6, 6, 0)
    assert sorted(told) == [("shard-00000.parquet", True), ("shard-00001.parquet", True)]
    first, kept = written(tmp_path), (tmp_path / "shard-00000.parquet").stat().st_mtime_ns
    (tmp_path / "shard-00001.parquet").unlink()
    told.clear()
    assert fleet.generate(prompts, None, tmp_path, Silent(), finished) == facts
    assert [name for name, _ in told] == ["shard-00000.parquet", "shard-00001.parquet"]
    assert written(tmp_path) == first
    assert (tmp_path / "shard-00000.parquet").stat().st_mtime_ns == kept


def test_an_actor_whose_process_is_killed_loads_again_and_ends_with_the_same_shards(fleet, prompts, tmp_path):
    fleet.generate(prompts, None, tmp_path, Silent())
    expected = written(tmp_path)
    for shard in tmp_path.glob("shard-*.parquet"):
        shard.unlink()
    [actor] = fleet._actors
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))

    def kill_once(shard):
        if shard.name == "shard-00000.parquet":
            os.kill(pid, signal.SIGKILL)

    fleet.generate(prompts, None, tmp_path, Silent(), kill_once)
    assert written(tmp_path) == expected
    assert ray.get(actor.__ray_call__.remote(lambda self: os.getpid())) != pid


class Hanging(GenerateActor):
    """Never ends a shard."""

    def load(self):
        """Load nothing."""

    def complete(self, prompts_file, start, trained, target):
        """Sleep."""
        import time

        time.sleep(60)


class Dying(Hanging):
    """Its process dies at every shard."""

    def complete(self, prompts_file, start, trained, target):
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)


def fleet_of(kind, model, cluster):
    fleet = Fleet(EngineSettings(model, CONFIG, 0, 0), cluster)
    fleet._actors = [start_actor(kind, [EngineSettings(model, CONFIG, 0, 0)], Workers(), 0)]
    return fleet


def test_a_shard_that_does_not_end_is_named(model, cluster, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SHARD_TIMEOUT_S", 3.0)
    fleet = fleet_of(Hanging, model, cluster)
    with pytest.raises(JobError, match=r"^refine\.generate: shard-00000\.parquet: not completed within 3 s"):
        fleet.generate(prompts, None, tmp_path, Silent())
    fleet.close()


@pytest.mark.slow
def test_an_engine_that_dies_again_and_again_ends_the_job_and_names_the_shard(model, cluster, prompts, tmp_path):
    fleet = fleet_of(Dying, model, cluster)
    with pytest.raises(JobError, match=r"^refine\.generate: shard-00000\.parquet: its process crashed repeatedly"):
        fleet.generate(prompts, None, tmp_path, Silent())
    fleet.close()


def test_a_model_that_cannot_be_loaded_is_one_line(cluster, prompts, tmp_path):
    (tmp_path / "empty").mkdir()
    fleet = Fleet(EngineSettings(str(tmp_path / "empty"), CONFIG, 0, 0), cluster)
    with pytest.raises(JobError, match=r"^refine\.generate: engine transformers with .*empty cannot be loaded: \w+: [^\n]+$"):
        fleet.generate(prompts, None, tmp_path, Silent())
    fleet.close()


def test_a_fleet_without_a_place_says_what_is_missing(model, cluster, prompts, tmp_path):
    config = CONFIG.model_copy(update={"workers": Workers(count=1, cpus=500)})
    fleet = Fleet(EngineSettings(model, config, 0, 0), replace(cluster, placement_timeout_s=1.0))
    with pytest.raises(JobError, match=r"^refine\.generate: 1 of 1 workers \(500 CPUs .* missing: up to \d"):
        fleet.generate(prompts, None, tmp_path, Silent())
    fleet.close()


def test_a_chat_template_is_named_by_its_setting_where_it_cannot_be_read(tmp_path):
    assert read_chat_template(CONFIG) is None
    config = CONFIG.model_copy(update={"chat_template": str(tmp_path / "chat.jinja")})
    with pytest.raises(InputError, match=r"^refine\.generate\.chat_template: \S+chat\.jinja: cannot be read"):
        read_chat_template(config)


def test_a_given_chat_template_decides_what_the_model_reads(model, prompts, tmp_path, monkeypatch):
    seen = []

    class Recorder:
        def generate(self, prompts, seeds, trained):
            seen.extend(prompts)
            return [Completion("red", 1, "stop") for _ in prompts]

    monkeypatch.setattr(stage, "load_engine", lambda *_, **__: Recorder())
    template = "{% for m in messages %}king {{ m.content }}{% endfor %}"
    actor = GenerateActor(EngineSettings(model, CONFIG, 0, 0, template))
    actor.complete(str(prompts), 4, None, str(tmp_path / "shard"))
    texts = [actor._tokenizer.decode(ids, skip_special_tokens=True) for ids in seen]
    assert texts == ["king the sea", "king rain"]


def test_the_models_own_code_runs_only_where_training_lets_it(model, prompts, tmp_path, monkeypatch):
    """The tokenizer and both engines' models are loaded with what the settings say."""
    import transformers

    seen = []
    for kind in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        load = kind.from_pretrained

        def noted(*given, load=load, trust_remote_code=False, **named):
            seen.append(trust_remote_code)
            return load(*given, **named)

        monkeypatch.setattr(kind, "from_pretrained", noted)
    for trusted in (False, True):
        seen.clear()
        GenerateActor(EngineSettings(model, CONFIG, 0, 0, trust_remote_code=trusted)).load()
        assert seen == [trusted, trusted]


@pytest.mark.parametrize("gpus", [0.5, 2])
def test_a_part_of_a_gpu_or_several_are_refused_for_vllm(gpus):
    with pytest.raises(ValueError, match=rf"workers\.gpus {gpus}: vLLM uses one whole GPU per actor; set 1, or 0 to use CPUs"):
        GenerateConfig(workers=Workers(gpus=gpus))
    for engine, allowed in (("vllm", None), ("vllm", 0), ("vllm", 1), ("transformers", gpus)):
        assert GenerateConfig(engine=engine, workers=Workers(gpus=allowed)).workers.gpus == allowed


def test_a_rank_above_what_vllm_takes_is_refused():
    assert TrainConfig(model="m", lora_rank=512).lora_rank == 512
    with pytest.raises(ValueError, match="less than or equal to 512"):
        TrainConfig(model="m", lora_rank=513)


def test_samples_that_would_all_be_the_same_are_refused():
    with pytest.raises(ValueError, match="samples 2: would be identical at temperature 0"):
        GenerateConfig(samples=2)
