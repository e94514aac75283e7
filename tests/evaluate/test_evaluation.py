import json
import math

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from divsel_ray.errors import InputError
from divsel_ray.evaluate import evaluation
from divsel_ray.evaluate.evaluation import Request, build_settings, evaluate
from divsel_ray.evaluate.loss import Conversation, LossMeter
from tests.e2e.jobs import divsel, finished, stage_facts, write_job
from tests.e2e.jobs import write_rows as write_more
from tests.embed.embed_server import DIMENSION, embed_server
from tests.evaluate.worlds import conversation, write_run, write_task
from tests.models.tiny import save_encoder

ROWS = [
    conversation("how are you", "i am fine"),
    conversation("write a story", "the sea"),
    conversation("count", "one two three"),
]
SELECTED = conversation("hello", "world")


def test_a_run_is_measured_on_what_it_held_out_overall_and_by_cluster(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(evaluation, "connect", lambda: cluster)
    clusters = dict(zip((row["row_id"] for row in ROWS), (0, 1, 0), strict=True))
    run = write_run(tmp_path / "job", ROWS, [SELECTED], clusters)
    result = evaluate(Request([str(run)]), build_settings([]))
    found = json.loads(result.read_text())

    assert result == run / "evaluate" / "evaluate.json"
    assert found["rows"] == 3
    rows = [Conversation(row["row_id"], row["messages"]) for row in ROWS]
    adapter = run / "round-1/train/t/training/adapter"
    # max_tokens is the run's own.
    how = {"chat_template": None, "max_tokens": 48, "batch_tokens": 1024}
    nats, tokens = zip(*(LossMeter(str(run / "base"), **how).measure(one, rows) for one in (None, adapter)), strict=True)
    means = [float(one.sum() / tokens[0].sum()) for one in nats]
    assert [figure["model"] for figure in found["figures"]] == ["untuned", "round 1"]
    np.testing.assert_allclose([figure["value"] for figure in found["figures"]], means, rtol=1e-6)
    assert found["figures"][1]["change"] == pytest.approx(means[1] - means[0])

    large, small = found["clusters"]
    assert [(one["cluster"], one["rows"]) for one in found["clusters"]] == [(0, 2), (1, 1)]
    assert large["figures"][0]["value"] == pytest.approx((nats[0][0] + nats[0][2]) / (tokens[0][0] + tokens[0][2]), rel=1e-6)
    assert small["figures"][1]["value"] == pytest.approx(nats[1][1] / tokens[1][1], rel=1e-6)


def test_rows_that_a_model_was_trained_on_are_left_out_and_told(tmp_path, monkeypatch):
    run = write_run(tmp_path / "job", ROWS, [SELECTED], {})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in [*ROWS, SELECTED]))
    taken = {}
    monkeypatch.setattr(evaluation, "_measure", lambda work, measures: taken.update(work=work, measures=measures))
    monkeypatch.setattr(evaluation, "_result", lambda work, rows, measures, files: {"rows": rows.count})

    result = evaluate(Request([str(run)], rows=str(file)), build_settings([]))
    assert json.loads(result.read_text()) == {"rows": 3}
    assert taken["work"].notes == ["1 of 4 rows are left out because a model was trained on them"]
    assert taken["work"].config.max_tokens == 48


def test_new_rows_are_read_as_the_runs_pool_was_and_embedded_by_its_server(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(evaluation, "connect", lambda: cluster)
    pool = {"data": ["rows.jsonl"], "columns": {"prompt": "ask", "completion": "reply"}}
    file = tmp_path / "new.jsonl"
    file.write_text(json.dumps({"ask": "how are you", "reply": "i am fine"}) + "\n")
    with embed_server() as server:
        embed = {"model": str(save_encoder(tmp_path / "encoder")), "api": {"model": "m", "url": server.url}}
        run = write_run(tmp_path / "job", ROWS, [SELECTED], {SELECTED["row_id"]: 0}, pool=pool, embed=embed)
        np.save(run / "cluster/c/centroids.npy", np.eye(2, DIMENSION, dtype=np.float32))
        found = json.loads(evaluate(Request([str(run)], rows=str(file)), build_settings([])).read_text())
    assert server.texts == ["how are you\ni am fine"]
    assert [figure["count"] for figure in found["figures"]] == [1, 1]
    assert [one["rows"] for one in found["clusters"]] == [1]


def test_a_limit_takes_the_first_rows_by_id(tmp_path, monkeypatch):
    run = write_run(tmp_path / "job", ROWS, [SELECTED], {})
    monkeypatch.setattr(evaluation, "_measure", lambda work, measures: [])
    monkeypatch.setattr(evaluation, "_result", lambda work, rows, measures, files: {"rows": rows.count})
    assert json.loads(evaluate(Request([str(run)], limit=2), build_settings([])).read_text()) == {"rows": 2}


def test_nothing_to_measure_and_unknown_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate(Request(["some/model"]), build_settings([]), tmp_path)
    with pytest.raises(InputError, match=r"--set: smaples: unknown key; expected one of max_tokens"):
        build_settings(["smaples=3"])
    with pytest.raises(InputError, match=r"--set: .*samples 3: would be identical at temperature 0"):
        build_settings(["samples=3"])
    done = divsel("evaluate", "some/model")
    assert done.returncode == 2
    assert "nothing to measure" in done.stderr


@pytest.mark.slow
def test_a_finished_job_is_evaluated_by_the_command(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra `eval`)")
    run = finished(write_job(tmp_path))
    [draw] = run.glob("round-1/draw/*/held_out_rows.parquet")
    held_out = pq.read_table(draw, columns=["row_id", "prompt", "completion"]).to_pylist()
    rows = write_more(tmp_path / "rows.jsonl", 5, seed=5)
    with rows.open("a") as stream:
        stream.writelines(json.dumps({name: row[name] for name in ("prompt", "completion")}) + "\n" for row in held_out)
    measures = ["--humaneval", "--task", "local_choice", "--tasks-folder", write_task(tmp_path / "tasks"), "--limit", "9"]
    out = tmp_path / "out"
    command = ["evaluate", run, "--every-round", "--rows", rows, *measures, "--set", "max_new_tokens=8", "--json", "--out", out]
    done = divsel(*command)
    assert done.returncode == 0, done.stderr

    found, names = json.loads(done.stdout), ["untuned", "round 1", "round 2"]
    assert [(figure["metric"], figure["model"], figure["count"]) for figure in found["figures"]] == [
        *[("held-out loss", name, 9) for name in names],
        *[("local_choice acc", name, 3) for name in names],
        *[("HumanEval pass@1", name, 9) for name in names],
    ]
    assert all(math.isfinite(figure["value"]) for figure in found["figures"])
    # New rows have clusters too: those of the run, by its encoder.
    assert sum(one["rows"] for one in found["clusters"]) == 9
    assert {one["cluster"] for one in found["clusters"]} <= set(range(4))

    facts, ids = stage_facts(run), {row["row_id"] for row in held_out}
    reported = [facts["round-1/train"]["held_out_loss_base"], *(facts[f"round-{n}/train"]["held_out_loss"] for n in (1, 2))]
    losses = [pq.read_table(out / name, filters=[("row_id", "in", ids)]) for name in found["files"]["loss"]]
    means = [pc.sum(table["nats"]).as_py() / pc.sum(table["tokens"]).as_py() for table in losses]
    np.testing.assert_allclose(means, reported, rtol=1e-5)

    files = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != "evaluate.json"}
    again = json.loads(divsel(*command).stdout)
    assert again["figures"] == found["figures"]
    assert {file: file.stat().st_mtime_ns for file in files} == files
