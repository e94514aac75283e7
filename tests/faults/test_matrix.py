"""kill -9 in every stage: of the driver, of the stage's process, of a whole node.

All of it: `pytest tests/faults --full-matrix`.

| stage    | driver | process                   | node |
|----------|--------|---------------------------|------|
| pool     | x      | x, the task               | x    |
| clean    | x      | x, the task               | x    |
| embed    | x      | x, the encoder's actor    | x    |
| cluster  | x      | x, the shard actor        | x    |
| reward   | x      | x, the task               | x    |
| quality  | x      | x, the scorer's actor     | x    |
| draw     | x      | x, the task               | x    |
| train    | x      | x, the training worker    | x    |
| generate | x      | x, the engine's actor     | x    |
| score    | x      | x, the task               | x    |
| weights  | x      | runs in the driver        | x    |

One run goes through all its stages and is hit in each, so that later faults meet what earlier ones left. Without
`--full-matrix` each stage is hit on one machine by the driver's or the process's death in turn, and a node is lost in
every third stage; with it each cell of the table is hit. A killed driver is started again with the same command; after
any other fault the job goes on by itself. At the end: the selection of an undisturbed run, byte for byte, and no
manifest and no finished part was written twice.
"""

import os
import signal

import psutil
import pytest

from tests.faults.harness import TRAPS, FaultyRun, hook_environment

pytestmark = pytest.mark.slow

STAGES = list(TRAPS)
FAULTS = ("driver", "process")


def faults_in_turn(first):
    """For each stage one of the two faults on one machine."""
    return {stage: FAULTS[(at + first) % 2] for at, stage in enumerate(STAGES)}


def hit(run, faults, kill):
    """Let a run meet a fault in each of these stages, in their order."""
    stages = list(faults)
    run.arm(TRAPS[stages[0]])
    run.start()
    for at, stage in enumerate(stages):
        caught = run.held()
        if at + 1 < len(stages):
            run.arm(TRAPS[stages[at + 1]])
        kill(run, faults[stage], caught)
    run.end()


def kill_here(run, fault, caught):
    if fault == "driver" or caught == run.process.pid:
        run.kill_driver()
        run.start()
    else:
        os.kill(caught, signal.SIGKILL)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", [0, 1])
def test_a_job_hit_in_every_stage_ends_with_the_same_selection(first, job, undisturbed, tmp_path, full_matrix):
    if first and not full_matrix:
        pytest.skip("the other half of the matrix: --full-matrix")
    faults = faults_in_turn(first)
    with FaultyRun(job, tmp_path / "run") as run:
        hit(run, faults, kill_here)
        assert run.starts == 1 + sum(fault == "driver" or stage == "weights" for stage, fault in faults.items())
        assert (run.folder / "selection.jsonl").read_bytes() == undisturbed


DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 20,
}


class Nodes:
    """A head without CPUs, where only the driver is, and one node that does the work and can be lost; down after the block."""

    def __init__(self, traps, monkeypatch):
        from ray.cluster_utils import Cluster

        for name, value in hook_environment(traps).items():
            monkeypatch.setenv(name, value)
        head = {"num_cpus": 0, "object_store_memory": 100 << 20, "_system_config": DETECTION, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.add()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cluster.shutdown()

    def add(self):
        self.worker = self.cluster.add_node(num_cpus=4, object_store_memory=100 << 20)

    def lose(self, run, _, caught):
        """Kill the node on which a process was caught, and put another in its place."""
        at_work = {process.process.pid for process in self.worker.all_processes["raylet"]}
        assert caught == run.process.pid or psutil.Process(caught).ppid() in at_work
        self.cluster.remove_node(self.worker, allow_graceful=False)
        self.add()
        if caught == run.process.pid:
            os.kill(caught, signal.SIGKILL)
            run.process.wait(30)
            run.start()


@pytest.mark.timeout(1800)
def test_a_job_that_loses_its_node_in_every_stage_ends_with_the_same_selection(
    job, undisturbed, tmp_path, full_matrix, monkeypatch
):
    stages = STAGES if full_matrix else STAGES[2::3]
    folder = tmp_path / "run"
    traps = folder.with_name("run.traps")
    with Nodes(traps, monkeypatch) as nodes, FaultyRun(job, folder, RAY_ADDRESS=nodes.cluster.address) as run:
        hit(run, dict.fromkeys(stages, "node"), nodes.lose)
        assert (folder / "selection.jsonl").read_bytes() == undisturbed
