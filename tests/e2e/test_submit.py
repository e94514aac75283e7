"""Jobs submitted to a real head, which wants a token."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from divsel_ray.submit import connect
from tests.e2e.jobs import selection, write_rows
from tests.e2e.ray_head import started_head

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with started_head(tmp_path_factory.mktemp("head"), node_cpus=6) as head:
        yield head


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory):
    """A folder with a job and without the package; its data lie elsewhere."""
    shared, folder = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("work")
    np.save(shared / "vectors.npy", np.random.default_rng(0).normal(size=(60, 8)).astype("float32"))
    job = {
        "budget": 7,
        "pool": {"data": str(write_rows(shared / "rows.jsonl", 60))},
        "embed": {"given": str(shared / "vectors.npy")},
        "cluster": {"k": 3},
    }
    (folder / "jobs of mine").mkdir()
    (folder / "jobs of mine" / "tiny.yaml").write_text(yaml.safe_dump(job))
    return folder


def command(head, working_dir, out, *more):
    config = working_dir / "jobs of mine" / "tiny.yaml"
    where = ["--address", head.url, "--working-dir", working_dir, "--out", out]
    return [sys.executable, "-m", "divsel_ray.cli", "submit", *map(str, [config, *where, *more])]


def submit(head, working_dir, out, *more, token=True):
    token_file = ["--token-file", head.token_file] if token else []
    line = command(head, working_dir, out, *token_file, *more)
    return subprocess.run(
        line, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "RAY_AUTH_MODE": "disabled"}
    )


def said_last(done):
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def finished(head, working_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, submit(head, working_dir, out, "cluster.k=4", "--json")


def test_a_submitted_job_is_followed_to_its_end_and_its_result_is_there(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert len(selection(out)) == 7
    assert json.loads((out / "manifest.json").read_text())["config"]["cluster"]["k"] == 4
    assert all(f"+ {stage}" in done.stderr for stage in ("pool", "embed", "cluster", "round-1/draw"))
    result = json.loads(done.stdout)
    assert result["out"] == str(out)
    assert result["job"].startswith("tiny-")
    assert result["job"].endswith("-1")


def test_ray_itself_can_submit_the_script_of_this_repository(finished, head, working_dir, tmp_path):
    for name in ("divsel_ray", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / "repository" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(working_dir / "jobs of mine" / "tiny.yaml", tmp_path / "repository" / "tiny.yaml")
    run = ["python", "jobs/run.py", "tiny.yaml", "--out", str(tmp_path / "run"), "cluster.k=4"]
    line = ["ray", "job", "submit", "--address", head.url, "--working-dir", str(tmp_path / "repository"), "--", *run]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False, env=head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert selection(tmp_path / "run") == selection(finished[0])


def test_a_job_that_fails_on_the_cluster_passes_on_its_exit_code_and_its_reason(finished, head, working_dir, tmp_path):
    done = submit(head, working_dir, tmp_path / "run", "budget=61", "--quiet")
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert "-2 failed: divsel: input: budget 61 exceeds the pool's 60 rows" in line


def test_a_job_is_refused_without_the_token_in_one_line(head, working_dir, tmp_path):
    done = submit(head, working_dir, tmp_path / "run", token=False)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"divsel: input: {head.url} requires a token: pass its file as --token-file")
    (tmp_path / "other").write_text("another token")
    done = submit(head, working_dir, tmp_path / "run", "--token-file", tmp_path / "other", token=False)
    assert f"{head.url} rejects this token" in said_last(done)


def test_a_job_outlives_ctrl_c_of_the_one_who_follows_it_and_is_stopped_by_the_command_that_is_named(head, working_dir, tmp_path):
    line = command(head, working_dir, tmp_path / "run", "--token-file", head.token_file, "--wait-for", "CPU=64")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    seen = ""
    while "Waiting for CPU=64" not in seen:
        text = process.stderr.readline()
        assert text, seen
        seen += text
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "is still running. To stop it: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in said
    stop = said.strip().rpartition("To stop it: ")[2]
    job = stop.split()[-1]
    client = connect(head.url, head.token_file)
    assert client.get_job_status(job) == "RUNNING"
    subprocess.run(stop, shell=True, check=True, capture_output=True, env=head.environment, timeout=60)
    until = time.monotonic() + 30
    while client.get_job_status(job) == "RUNNING" and time.monotonic() < until:
        time.sleep(0.2)
    assert client.get_job_status(job) == "STOPPED", client.get_job_logs(job)
