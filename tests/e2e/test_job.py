"""The whole job on tiny models, on one machine and on three nodes; `tests/faults` kills it."""

import json
import subprocess
import sys

import pytest

from tests.e2e.jobs import divsel, environment, finished, selection, stage_facts, write_job

pytestmark = pytest.mark.slow
WORKERS = {
    "embed": {"count": 2, "gpus": 0.5},
    "cluster": {"count": 2, "gpus": 0.3},
    "quality": {"count": 2, "gpus": 0.2},
    "reward": {"count": 1, "gpus": 0.15},
    # With a GPU it would talk by NCCL.
    "refine.train": {"count": 1, "gpus": 0},
    # Its few prompts are one shard.
    "refine.generate": {"count": 1, "gpus": 0.4},
}
ACTORS = {
    "EmbedPartition": "embed",
    "ShardActor": "cluster",
    "ScorePart": "quality",
    "ScoreActor": "reward",
    "RayTrainWorker": "refine.train",
    "GenerateActor": "refine.generate",
}
"""The classes of the stages' actors, and the sections that say what they are given."""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def run(job):
    return finished(job)


def test_exactly_the_budget_is_selected_with_its_columns(run):
    rows = selection(run)
    assert len(rows) == 12
    assert len({row["row_id"] for row in rows}) == 12
    assert all({"messages", "row_id", "cluster", "quality", "round", "source", "weight"} <= row.keys() for row in rows)
    assert sorted(row["round"] for row in rows) == [1] * 6 + [2] * 6


def test_weights_are_a_distribution_in_every_round(run):
    facts = stage_facts(run)
    for number in (1, 2):
        assert sum(facts[f"round-{number}/weights"]["weights"]) == pytest.approx(1)


def test_held_out_rows_are_never_selected(run):
    import pyarrow.parquet as pq

    held_out = {i for f in run.glob("round-*/draw/*/held_out.parquet") for i in pq.read_table(f)["row_id"].to_pylist()}
    assert len(held_out) == 4
    assert not held_out & {row["row_id"] for row in selection(run)}


def test_the_report_and_the_card_are_there(run):
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")[:400].lower()
    assert (run / "README.md").read_text(encoding="utf-8").startswith("---")


def test_a_second_run_of_the_folder_repeats_nothing(job, run):
    before = (run / "selection.jsonl").read_bytes()
    again = divsel("run", job, "--out", run)
    assert again.returncode == 0
    assert (run / "selection.jsonl").read_bytes() == before
    assert again.stderr.count("cached") == len(stage_facts(run))


def test_a_changed_byte_of_the_data_is_another_job(job, run):
    from divsel_ray.config.files import load_config
    from divsel_ray.pipeline import plan_job

    config = load_config(job)
    assert all(cached for _, cached in plan_job(config, run))
    data = job.parent / "rows.jsonl"
    text = data.read_text()
    try:
        data.write_text(text.replace('"prompt": "0 ', '"prompt": "9 ', 1))
        assert not any(cached for _, cached in plan_job(config, run))
    finally:
        data.write_text(text)


def test_a_pool_without_rows_to_spare_is_refined_without_held_out_ones(job, tmp_path):
    out = tmp_path / "run"
    done = divsel("run", job, "--out", out, "pool.sample=12", "refine.rounds=1")
    assert done.returncode == 0, done.stderr
    assert len(selection(out)) == 12
    assert "round-0/score" not in stage_facts(out)


@pytest.fixture(scope="module")
def on_three_nodes(job):
    """The run folder of three nodes whose GPUs are only declared, and the GPUs of each actor by its class."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 3, "num_gpus": 1, "object_store_memory": 100 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(2):
            nodes.add_node(**node)
        nodes.wait_for_nodes()
        out = job.parent / "three-nodes"
        settings = [f"{section}.workers.{name}={value}" for section, each in WORKERS.items() for name, value in each.items()]
        # By default so few rows are one shard.
        settings.append(f"cluster.n_shards={WORKERS['cluster']['count']}")
        command = [sys.executable, "-m", "tests.e2e.watched", str(job), str(out), *settings]
        given = environment(RAY_ADDRESS=nodes.address)
        done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=800, check=False)
    finally:
        nodes.shutdown()
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


def test_three_nodes_select_what_one_machine_selects(run, on_three_nodes):
    out, _ = on_three_nodes
    assert (out / "selection.jsonl").read_bytes() == (run / "selection.jsonl").read_bytes()


def test_the_actors_of_every_stage_ask_for_the_gpus_that_its_settings_say(on_three_nodes):
    _, asked = on_three_nodes
    for actor, section in ACTORS.items():
        # One that loses its place is started again.
        given = [gpus for kind, each in asked.items() if actor in kind for gpus in each]
        assert len(given) >= WORKERS[section]["count"], asked
        assert set(given) == {WORKERS[section]["gpus"]}, asked
    assert set().union(*(each for kind, each in asked.items() if not any(actor in kind for actor in ACTORS))) == {0}
