"""What a run folder holds beside its last finished job, and that nothing else is removed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from divsel_ray.clean import find_leftovers, remove
from divsel_ray.cli import app
from divsel_ray.errors import InputError, JobError
from divsel_ray.store import RUN_MANIFEST, Store, write_json


def make(root: Path, name: str, setting: int, text: str = "x"):
    """A committed stage of one file."""
    stage = Store(root).stage(name, 1, {"setting": setting}, [])
    (stage.start() / "part.parquet").write_text(text)
    stage.commit({"rows": 1})
    return stage


@pytest.fixture
def run(tmp_path):
    """A finished run of two stages, beside which lie two stages of other settings, an unfinished one, and what is no stage."""
    root = tmp_path / "run"
    used = [make(root, "embed", 1), make(root, "round-1/draw", 1)]
    make(root, "embed", 2, "12345")
    make(root, "round-4/train", 1)
    (Store(root).stage("cluster", 1, {"setting": 3}, []).start() / "half.parquet.tmp-1").write_text("123")
    for other in ("evaluate/0123456789abcdef", "embed/notes"):
        (root / other).mkdir(parents=True)
    (root / "report.html").write_text("<html>")
    entries = [{"stage": stage.name, "key": stage.key, "facts": {}, "seconds": 1, "cached": False} for stage in used]
    write_json(root / RUN_MANIFEST, {"config": {}, "stages": entries})
    return root


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.name != ".lock")


def test_stages_of_other_settings_and_unfinished_ones_are_found(run):
    found = [(one.stage, one.finished) for one in find_leftovers(run)]
    assert found == [("cluster", False), ("embed", True), ("round-4/train", True)]
    # The stage's own file and its manifest; of the unfinished one, what was written.
    assert find_leftovers(run)[0].bytes == 3
    assert find_leftovers(run)[1].bytes > 5


def test_what_is_removed_leaves_the_rest_as_it_was(run):
    gone = {one.folder.relative_to(run).as_posix() for one in find_leftovers(run)}
    kept = [path for path in files(run) if not any(path.startswith(folder) for folder in gone)]
    remove(run, find_leftovers(run))
    assert files(run) == [path for path in kept if path not in ("cluster", "round-4", "round-4/train")]
    assert find_leftovers(run) == []


def test_a_link_goes_and_what_it_leads_to_stays(run, tmp_path):
    elsewhere = make(tmp_path / "other", "embed", 7)
    (run / "embed" / elsewhere.key).symlink_to(elsewhere.folder)
    found = [one for one in find_leftovers(run) if one.folder.name == elsewhere.key]
    assert [(one.bytes, one.finished) for one in found] == [(0, True)]
    remove(run, found)
    assert elsewhere.committed
    assert not (run / "embed" / elsewhere.key).exists()


def test_nothing_is_removed_under_a_job_at_work(run):
    with Store(run).lock(), pytest.raises(JobError, match="is working on this run folder"):
        remove(run, find_leftovers(run))
    assert len(find_leftovers(run)) == 3


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finished run in this folder"):
        find_leftovers(tmp_path)


def test_the_command_lists_first_and_removes_only_when_told(run):
    listed = CliRunner().invoke(app, ["clean", str(run), "--json"])
    assert json.loads(listed.stdout)["removable"] == len(find_leftovers(run)) == 3
    removed = CliRunner().invoke(app, ["clean", str(run), "--yes"])
    assert removed.exit_code == 0
    assert "round-4/train" in removed.stdout
    assert find_leftovers(run) == []
