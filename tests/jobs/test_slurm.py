"""The Slurm script: what it starts where and in which order, and that nothing of it outlives the job.

`srun` and `scontrol` are stand-ins: the "nodes" are all this machine.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.e2e.jobs import environment, selection, write_rows
from tests.e2e.ray_head import free_ports

SCRIPT = Path(__file__).parents[2] / "jobs" / "slurm.sh"
SRUN = """#!/usr/bin/env bash
for word in "$@"; do case $word in --nodelist=*) node=${word#*=};; --*) ;; *) break;; esac; shift; done
echo "$node: $*" >> "$SLURM_LOG"
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1 $2" = "show hostnames" ] && printf '%s\\n' ${3//,/ }
"""
HOSTNAME = """#!/usr/bin/env bash
echo "fe80::1 127.0.0.1 10.9.9.9"
"""
RAY = f"""#!{sys.executable}
import os, signal, socket, sys, time
assert os.environ["RAY_AUTH_MODE"] == "token" and len(open(os.environ["RAY_AUTH_TOKEN_PATH"]).read()) == 64
def end(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(os.environ["SLURM_LOG"], "a").write("ray ended\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
port = [word.split("=")[1] for word in sys.argv if word.startswith("--port=")]
if port:
    listening = socket.create_server(("127.0.0.1", int(port[0])))
open(os.environ["SLURM_LOG"], "a").write("ray began\\n")
time.sleep(60)
"""
DIVSEL = """#!/usr/bin/env bash
until [ "$(grep -c 'ray began' "$SLURM_LOG")" = 3 ]; do sleep 0.05; done
echo "RAY_ADDRESS=$RAY_ADDRESS divsel $*" >> "$SLURM_LOG"
if [ "$1 $2" = "run slow" ]; then sleep 60; fi
[ "$2" != wrong ] || exit 2
"""


class Slurm:
    """An allocation whose nodes are this machine."""

    def __init__(self, folder, **programs):
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        self.port = free_ports(1)[0]
        # The script's port is 20000 and the job's number, by its last four digits.
        self.job = f"7{self.port % 10000:04}"
        (folder / "bin").mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **programs}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, *arguments, nodes="a1,a2,a3", cpus=4, gpus=0):
        names = {
            "JOB_ID": self.job,
            "JOB_NODELIST": nodes,
            "CPUS_PER_TASK": str(cpus),
            "GPUS_ON_NODE": str(gpus),
            "LOG": str(self.log),
        }
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        given = environment(PATH=path, **{f"SLURM_{name}": value for name, value in names.items()})
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, **counts):
        process = self.start(*arguments, **counts)
        try:
            said = process.communicate(timeout=200)[0]
        finally:
            subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=False, capture_output=True)
        return process.returncode, said, self.log.read_text().splitlines()

    def left(self):
        """What the script has made and not taken away."""
        return [*self.folder.glob(".divsel-*"), *self.folder.glob("tmp/*")]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return Slurm(tmp_path, hostname=HOSTNAME, ray=RAY, divsel=DIVSEL)


def test_the_script_is_shell_and_says_what_it_takes(slurm):
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    code, said, log = slurm.run()
    assert (code, log) == (2, [])
    assert said.startswith("usage: sbatch jobs/slurm.sh CONFIG --out SHARED_FOLDER")


def test_the_head_is_started_then_the_workers_then_the_job_and_all_of_it_ends(slurm):
    code, said, log = slurm.run("job.yaml", "--out", "/shared/a run", "cluster.k=4", gpus=2)
    assert code == 0, said
    address = f"127.0.0.1:{20000 + int(slurm.job) % 10000}"
    starts = [line for line in log if "ray start" in line]
    names = [line.partition(":")[0] for line in starts]
    # The workers are started in the background.
    assert (names[0], sorted(names)) == ("a1", ["a1", "a2", "a3"])
    assert f"--head --port={address.partition(':')[2]} --include-dashboard=false" in starts[0]
    assert all(f"--address={address}" in line and "--head" not in line for line in starts[1:])
    assert all("--block" in line and "--node-ip-address=127.0.0.1 --num-cpus=4 --num-gpus=2" in line for line in starts)
    temporary = {Path(re.search(r"--temp-dir=(\S+)", line)[1]) for line in starts}
    assert (len(temporary), {folder.parent for folder in temporary}) == (3, {slurm.folder / "tmp"})
    job = f"RAY_ADDRESS={address} divsel run job.yaml --out /shared/a run cluster.k=4 --wait-for CPU=12,GPU=6"
    assert log.index(job) > log.index(starts[0])
    assert [line for line in log[log.index(job) :] if line == "ray ended"] == ["ray ended"] * 3
    assert slurm.left() == []


def test_options_of_ray_are_ones_that_it_knows():
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in (*option.opts, *option.secondary_opts)}
    [line] = re.findall(r"ray start (?:.|\n)*?&", SCRIPT.read_text())
    assert set(re.findall(r"--[a-z-]+", line)) | {"--head", "--port", "--include-dashboard", "--address"} <= known


def test_the_exit_code_of_the_job_is_that_of_the_allocation(slurm):
    code, _, log = slurm.run("wrong")
    assert code == 2
    assert log.count("ray ended") == 3


def test_an_allocation_that_is_taken_away_leaves_nothing_behind(slurm):
    process = slurm.start("slow")
    until = time.monotonic() + 60
    while "\nRAY_ADDRESS=" not in slurm.log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert list(slurm.folder.glob(".divsel-*/token"))
    assert len(list(slurm.folder.glob("tmp/ray-*"))) == 3
    # Slurm signals the script and every step.
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert slurm.log.read_text().count("ray ended") == 3
    assert slurm.left() == []


@pytest.mark.slow
def test_a_job_runs_on_the_ray_that_the_script_has_started(tmp_path):
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(60, 8)).astype("float32"))
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    job = {"budget": 7, "pool": {"data": str(rows)}, "embed": {"given": str(tmp_path / "vectors.npy")}, "cluster": {"k": 3}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, said, _ = Slurm(tmp_path).run("job.yaml", "--out", tmp_path / "run", nodes="a1,a2", cpus=3)
    assert code == 0, said
    assert "Waiting for CPU=6" in said
    assert len(selection(tmp_path / "run")) == 7
    assert not list(tmp_path.glob(".divsel-*"))
