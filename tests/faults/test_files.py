"""Files that are cut short, folders that are half written, and two jobs on one folder."""

import shutil
import subprocess

import pytest

from divsel_ray.store import MANIFEST
from tests.e2e.jobs import divsel, write_rows
from tests.faults.harness import FaultyRun, Trap, finished_files
from tests.json_lines import read_lines

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(static_run, tmp_path):
    """A finished run that may be damaged."""
    return shutil.copytree(static_run, tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_part_that_was_cut_short_is_made_again_and_no_other(static_job, static_run, copied):
    part = sorted(copied.glob("embed/*/part-*.parquet"))[1]
    whole = part.read_bytes()
    cut(part)
    before = finished_files(copied / "embed")
    again = divsel("run", static_job, "--out", copied)
    assert again.returncode == 0, again.stderr
    assert part.read_bytes() == whole
    changed = [path.name for path, state in finished_files(copied / "embed").items() if before[path] != state]
    assert sorted(changed) == sorted([MANIFEST, part.name])
    assert [line.split()[1] for line in again.stderr.splitlines() if line.startswith("+")] == ["embed"]
    assert (copied / "selection.jsonl").read_bytes() == (static_run / "selection.jsonl").read_bytes()


def test_a_half_written_stage_is_finished_and_its_litter_removed(static_job, static_run, copied):
    [manifest] = copied.glob("cluster/*/_manifest.json")
    parts = sorted(manifest.parent.glob("part-*.parquet"))
    manifest.unlink()
    parts[0].rename(parts[0].with_name(f"{parts[0].name}.tmp-0123456789ab"))
    cut(parts[0].with_name(f"{parts[0].name}.tmp-0123456789ab"))
    again = divsel("run", static_job, "--out", copied)
    assert again.returncode == 0, again.stderr
    assert parts[0].is_file()
    assert not list(manifest.parent.glob("*.tmp-*"))
    assert (copied / "selection.jsonl").read_bytes() == (static_run / "selection.jsonl").read_bytes()


def test_a_parquet_input_that_was_cut_short_is_refused_in_one_line(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = read_lines(write_rows(tmp_path / "rows.jsonl", 30))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    cut(tmp_path / "rows.parquet")
    done = divsel("select", tmp_path / "rows.parquet", "--budget", 5, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2, done.stderr
    assert "rows.parquet" in done.stderr.strip().splitlines()[-1]
    assert "not readable as Parquet" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_second_job_on_the_folder_is_refused_at_once_and_told_by_whom(static_job, static_run, tmp_path):
    with FaultyRun(static_job, tmp_path / "run") as run:
        run.arm(Trap("pool"))
        run.start()
        caught = run.held()
        second = divsel("run", static_job, "--out", run.folder)
        assert second.returncode == 1, second.stderr
        assert f"process {run.process.pid}" in second.stderr.strip().splitlines()[-1]
        subprocess.run(["kill", "-9", str(caught)], check=True)
        run.end()
        assert (run.folder / "selection.jsonl").read_bytes() == (static_run / "selection.jsonl").read_bytes()
