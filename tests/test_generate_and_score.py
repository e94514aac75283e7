"""Generation and scoring of a round on tiny models: two scorers, two samples, kills between the two stages."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import Config
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster
from divsel_ray.rounds import RefiningJob
from divsel_ray.store import Store
from tests.models.tiny import save_language_model, save_reward_model

HERE = Cluster(cpus=4, gpus=0, node_cpus=4, node_gpus=0, memory_gib=8, nodes=1, local=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = str(save_language_model(folder / "lm"))
    (folder / "rows.jsonl").write_text('{"prompt": "hi", "completion": "red"}\n')
    refine = {
        "rounds": 1,
        "second": {"perplexity": model, "max_tokens": 64, "workers": {"count": 1}},
        "train": {"model": model},
        "generate": {
            "engine": "transformers",
            "max_prompt_tokens": 32,
            "max_new_tokens": 6,
            "shard_size": 2,
            "samples": 2,
            "temperature": 1.0,
            "dtype": "float32",
            "long_prompts": "error",
        },
    }
    reward = {"model": str(save_reward_model(folder / "reward")), "max_tokens": 64, "workers": {"count": 1}}
    return Config.model_validate({"budget": 4, "pool": {"data": str(folder / "rows.jsonl")}, "reward": reward, "refine": refine})


def draw_stage(store):
    """A draw whose held-out rows are three, one of them too long for the model."""
    stage = store.stage("round-1/draw", 1, {}, [])
    folder = stage.start()
    prompts = ["how are you", "rain " * 40, "the sea"]
    rows = [
        {"row_id": f"{i:032x}", "messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "green blue"}]}
        for i, p in enumerate(prompts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "held_out_rows.parquet")
    pq.write_table(pa.table({"row_id": [row["row_id"] for row in rows]}), folder / "held_out.parquet")
    stage.commit({})
    return stage


def test_completions_of_another_base_model_are_others(config, tmp_path):
    """Before any training too: round 0 is the base model's alone."""
    keys = set()
    for model in (config.refine.train.model, str(save_language_model(tmp_path / "other", seed=1))):
        train = config.refine.train.model_copy(update={"model": model})
        changed = config.model_copy(update={"refine": config.refine.model_copy(update={"train": train})})
        job = RefiningJob(changed, Store(tmp_path / "run"), Silent(), None, dry=True)
        keys.add(job.generate(0, job.store.stage("round-1/draw", 1, {}, []), None, None).key)
    assert len(keys) == 2


def test_what_training_says_of_the_models_own_code_holds_for_generation(config, tmp_path):
    for trusted in (False, True):
        train = config.refine.train.model_copy(update={"trust_remote_code": trusted})
        changed = config.model_copy(update={"refine": config.refine.model_copy(update={"train": train})})
        job = RefiningJob(changed, Store(tmp_path / "run"), Silent(), HERE)
        assert job._streaming(None).fleet._settings.trust_remote_code is trusted


def test_shards_are_scored_while_others_are_generated_and_a_kill_between_loses_and_repeats_nothing(config, cluster, tmp_path):
    store = Store(tmp_path)
    draw, job = draw_stage(store), RefiningJob(config, store, Silent(), cluster)
    try:
        generated = job.generate(0, draw, None, None)
        assert {"rows": 3, "completions": 6, "errors": 2}.items() <= generated.facts.items()
        # Only what was scored by the actors while this stage ran can be there: no score stage was asked for yet.
        job._stream.crews[0]._settle(wait=True)
        parts = sorted(tmp_path.glob("round-0/score/*/rewards/*.parquet"))
        assert [part.name[:11] for part in parts] == ["shard-00000", "shard-00001"]
        stamps = [part.stat().st_mtime_ns for part in parts]
        scored = job.score(0, draw, generated, None)
        assert [part.stat().st_mtime_ns for part in parts] == stamps
        gaps = pq.read_table(scored.folder / "gaps.parquet").to_pylist()
        assert [(row["gap"] is None, row["second_gap"] is None, row["held_out"]) for row in gaps] == [
            (False, False, True),
            (True, True, True),
            (False, False, True),
        ]
        assert (scored.facts["missing"], scored.facts["errors"]) == (1, 1)
        first = (scored.folder / "gaps.parquet").read_bytes()
    finally:
        job.close()
    # The driver dies before the scores are committed, and with them half of the parts.
    (scored.folder / "_manifest.json").unlink()
    (scored.folder / "gaps.parquet").unlink()
    parts[1].unlink()
    shutil.rmtree(scored.folder / "second")
    again = RefiningJob(config, store, Silent(), cluster)
    try:
        generated = again.generate(0, draw, None, None)
        scored = again.score(0, draw, generated, None)
        assert again._stream.fleet.size == 0
        assert parts[0].stat().st_mtime_ns == stamps[0]
        assert (scored.folder / "gaps.parquet").read_bytes() == first
    finally:
        again.close()
