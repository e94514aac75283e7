"""`divsel quickstart --fast` for real: real conversations, real models, every claim looked at in its output."""

import json

import pyarrow.parquet as pq
import pytest

from tests.e2e.jobs import divsel, selection, stage_facts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    done = divsel("quickstart", "--fast", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_sixteen_conversations_are_selected(run):
    rows = selection(run[0])
    assert len({row["row_id"] for row in rows}) == len(rows) == 16
    assert all(row["messages"][-1]["role"] == "assistant" and row["quality"] is not None for row in rows)


def test_every_whole_record_was_read_and_the_cut_one_counted(run):
    facts = stage_facts(run[0])["pool"]
    [file] = facts["files"].values()
    assert file["rows"] == 17_672
    assert facts["bad_reasons"]["file ends inside record 17,672"] == 1
    quarantine = [json.loads(line) for path in run[0].glob("pool/*/quarantine.jsonl") for line in path.open(encoding="utf-8")]
    assert len(quarantine) == facts["bad_rows"]


def test_the_stand_in_reward_model_prefers_a_prompts_own_completion(run):
    assert stage_facts(run[0])["reward"]["held_out_accuracy"] > 0.6


def test_training_lowers_the_held_out_loss(run):
    facts = stage_facts(run[0])["round-2/train"]
    assert facts["held_out_loss"] < facts["held_out_loss_base"]


def test_the_last_rounds_completions_differ_from_the_base_models(run):
    def held_out(number):
        files = sorted(run[0].glob(f"round-{number}/generate/*/shard-*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        return {row["row_id"]: row["generated"] for row in rows}

    base, last = held_out(0), held_out(2)
    assert len(base) == 16
    assert sum(base[row_id] != last[row_id] for row_id in base) >= 8


def test_weights_sum_to_one_and_changed(run):
    facts = stage_facts(run[0])
    rounds = [facts[f"round-{number}/weights"] for number in (1, 2)]
    assert [sum(entry["weights"]) for entry in rounds] == pytest.approx([1, 1])
    assert any(entry["moved"] > 0 for entry in rounds)


def test_it_says_what_it_does_and_names_the_stand_in_and_the_terms(run):
    assert "stand-in" in run[1]
    assert "https://ai.google.dev/gemma/terms" in run[1]
