"""Full disks, processes that die again and again, and clusters without room: one clear line, and the same command resumes."""

import re

import pytest
import yaml

from divsel_ray.store import MANIFEST
from tests.faults.harness import FaultyRun, Trap

pytestmark = pytest.mark.slow


def in_full_matrix_only(left_out):
    if left_out:
        pytest.skip("one stage stands for all: --full-matrix")


@pytest.mark.parametrize("trap", [Trap("pool", "part-"), Trap("embed", finished=1), Trap("cluster", "part-")])
def test_a_full_disk_ends_the_job_with_the_folder_named_and_the_same_command_goes_on(
    trap, static_job, static_run, tmp_path, full_matrix
):
    in_full_matrix_only(trap.stage != "embed" and not full_matrix)
    with FaultyRun(static_job, tmp_path / "run") as run:
        run.arm(Trap(trap.stage, trap.name, trap.finished, action="fill"))
        run.start()
        said = run.failure()
        assert re.search(
            rf"failed: .*no space left on the disk of .*/run(/{trap.stage}|\b).*run the same command again to resume", said
        )
        assert not list((run.folder / trap.stage).glob(f"*/{MANIFEST}"))
        run.disarm()
        run.start()
        run.end()
    assert (run.folder / "selection.jsonl").read_bytes() == (static_run / "selection.jsonl").read_bytes()


@pytest.mark.parametrize(("stage", "said_of"), [("pool", "pool"), ("embed", "embed"), ("cluster", "k-means")])
def test_a_process_that_dies_every_time_ends_the_job_and_says_what_to_look_at(stage, said_of, static_job, tmp_path, full_matrix):
    in_full_matrix_only(stage != "pool" and not full_matrix)
    with FaultyRun(static_job, tmp_path / "run") as run:
        run.arm(Trap(stage, "part-", action="die"))
        run.start()
        said = run.failure()
    assert re.search(rf"failed: {said_of}: its process crashed repeatedly.*memory.*run the same command again to resume", said)


def test_a_cluster_without_a_free_cpu_is_told_of_within_the_limit(static_job, tmp_path):
    job = yaml.safe_load(static_job.read_text())
    # More CPUs than are declared free once the pool's actors have theirs; each alone would fit.
    job["embed"]["workers"] = {"count": 5, "cpus": 2}
    job["placement_timeout_s"] = 20
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with FaultyRun(tmp_path / "job.yaml", tmp_path / "run") as run:
        run.start()
        said = run.failure()
    assert re.search(r"embed: 5 of 5 workers \(2 CPUs and 0 GPUs each\) were not ready within 20 s; free: .* missing", said)
