"""The run store: keys that tell inputs apart, commits that are whole or absent, one worker per folder."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.errors import InputError, JobError
from divsel_ray.store import MANIFEST, Store, atomic_path, digest, read_json, remove_folder, write_array, write_json, write_table


def test_any_changed_setting_input_or_version_changes_the_key(tmp_path):
    store = Store(tmp_path)
    base = store.stage("pool", 1, {"sample": 10}, ["a"]).key
    assert store.stage("pool", 1, {"sample": 10}, ["a"]).key == base
    others = [
        store.stage("pool", 2, {"sample": 10}, ["a"]),
        store.stage("pool", 1, {"sample": 11}, ["a"]),
        store.stage("pool", 1, {"sample": 10}, ["b"]),
        store.stage("embed", 1, {"sample": 10}, ["a"]),
    ]
    assert len({base, *(stage.key for stage in others)}) == 5


def test_the_key_does_not_depend_on_the_order_of_settings():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_a_stage_is_committed_only_after_commit(tmp_path):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    stage.start()
    (stage.folder / "part.parquet").write_text("rows")
    assert not stage.committed
    stage.commit({"rows": 1})
    assert stage.committed
    assert stage.facts == {"rows": 1}
    assert Store(tmp_path).stage("pool", 1, {}, []).committed


@pytest.mark.parametrize("name", ["part.parquet", "model/weights.safetensors"])
@pytest.mark.parametrize("damage", [lambda p: p.write_text("ro"), lambda p: p.unlink()])
def test_a_damaged_output_is_not_committed(tmp_path, damage, name):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    file = stage.start() / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("rows")
    stage.commit({})
    assert stage.damaged() == []
    damage(file)
    assert not stage.committed
    assert stage.damaged() == [name]


def test_files_are_listed_by_name_without_others_and_unfinished_ones(tmp_path):
    folder = Store(tmp_path).stage("pool", 1, {}, []).start()
    for name in ("part-1.parquet", "part-0.parquet", "part-2.parquet.tmp-01", "part-3.tmp-01.parquet", "facts.json"):
        (folder / name).touch()
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    assert stage.files() == [str(folder / "part-0.parquet"), str(folder / "part-1.parquet")]
    assert stage.files("*.json") == [str(folder / "facts.json")]


def test_a_stage_takes_the_seconds_from_its_start_to_its_commit(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("divsel_ray.store.time", SimpleNamespace(time=lambda: now[0]))
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    now[0] = 130.0
    stage.start()
    now[0] = 132.5
    stage.commit({})
    assert Store(tmp_path).stage("pool", 1, {}, []).seconds == 2.5


def test_making_a_damaged_stage_again_keeps_its_whole_files_and_drops_the_others(tmp_path):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    stage.start()
    for name in ("whole", "cut", "changed"):
        (stage.folder / f"{name}.parquet").write_text("rows")
    stage.commit({})
    (stage.folder / "cut.parquet").write_text("ro")
    (stage.folder / "changed.parquet").write_text("worn")
    stage.start()
    assert [path.name for path in stage.folder.iterdir()] == ["whole.parquet"]


def test_nothing_is_trusted_beside_a_manifest_that_cannot_be_read(tmp_path):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    stage.start()
    (stage.folder / "model").mkdir()
    for name in ("part.parquet", "model/weights.safetensors"):
        (stage.folder / name).write_text("rows")
    stage.commit({})
    (stage.folder / MANIFEST).write_text('{"files": {')
    stage.start()
    assert [path for path in stage.folder.rglob("*") if path.is_file()] == []


def test_a_half_written_manifest_is_no_commit(tmp_path):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    stage.start()
    stage.commit({})
    (stage.folder / MANIFEST).write_text('{"files": {')
    assert not stage.committed


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "value.json"
    write_json(target, 1)
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert read_json(target) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_an_array_that_cannot_be_written_leaves_the_old_one_and_no_litter(tmp_path):
    path = tmp_path / "centroids.npy"
    write_array(path, np.arange(3))
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(path, np.array([object()]))
    assert np.load(path).tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["centroids.npy"]


def test_a_table_is_written_with_the_options_of_its_stage(tmp_path):
    path = tmp_path / "rows.parquet"
    write_table(path, pa.table({"row": range(5)}), row_group_size=2)
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == 3
        assert file.read().to_pydict() == {"row": [0, 1, 2, 3, 4]}
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_failed_write_of_a_folder_leaves_the_old_one_and_no_litter(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "model") as folder:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("first", "second"):
        with atomic_path(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / name).write_text(name)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]


def test_leftovers_of_a_killed_write_are_removed_by_the_commit(tmp_path):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    stage.start()
    (stage.folder / "part.parquet.tmp-0123").write_text("half")
    (stage.folder / "model.tmp-0123").mkdir()
    (stage.folder / "model.tmp-0123" / "weights").write_text("half")
    (stage.folder / "part.parquet").write_text("whole")
    stage.commit({})
    assert sorted(p.name for p in stage.folder.iterdir()) == [MANIFEST, "part.parquet"]


def test_a_removal_that_was_stopped_leaves_nothing_of_the_name_and_the_commit_takes_the_rest(tmp_path, monkeypatch):
    stage = Store(tmp_path).stage("pool", 1, {}, [])
    parts = stage.start() / "parts"
    parts.mkdir()
    (parts / "a.parquet").write_text("rows")
    monkeypatch.setattr("shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_folder(parts)
    monkeypatch.undo()
    assert not parts.exists()
    stage.commit({})
    assert [path.name for path in stage.folder.iterdir()] == [MANIFEST]


def test_a_second_job_on_the_folder_is_refused_and_told_by_whom(tmp_path):
    with Store(tmp_path).lock(), pytest.raises(JobError, match=f"process {os.getpid()}"), Store(tmp_path).lock():
        pass


def test_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import sys, time; from divsel_ray.store import Store\n"
        "with Store(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(JobError), Store(tmp_path).lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    time.sleep(0.1)
    with Store(tmp_path).lock():
        pass


def test_object_store_folders_are_refused_with_advice():
    with pytest.raises(InputError, match="mount the bucket"):
        Store("s3://bucket/run")


def commit(store, text="rows"):
    """A stage of this store, made in it unless it is found."""
    stage = store.stage("round-1/draw", 1, {"size": 3}, [])
    if not stage.committed:
        (stage.start() / "part.parquet").write_text(text)
        stage.commit({"made_in": store.root.name})
    return stage


def test_a_stage_that_one_run_commits_is_found_by_those_that_share_with_it(tmp_path):
    first, second = (Store(tmp_path / name, tmp_path / "shared") for name in ("a", "b"))
    commit(first)
    found = commit(second)
    assert found.facts == {"made_in": "a"}
    assert found.folder == tmp_path / "b/round-1/draw" / found.key
    assert found.folder.is_symlink()
    assert (Store(tmp_path / "b").root / "round-1/draw" / found.key / "part.parquet").read_text() == "rows"
    assert [p.name for p in tmp_path.glob("*/round-1/draw/*")] == [found.key] * 3


def test_runs_that_share_nothing_make_their_own(tmp_path):
    commit(Store(tmp_path / "a", tmp_path / "shared"))
    assert commit(Store(tmp_path / "b")).facts == {"made_in": "b"}


def test_links_survive_a_move_of_the_whole_folder(tmp_path):
    for name in ("a", "b"):
        commit(Store(tmp_path / "old" / name, tmp_path / "old/shared"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert commit(Store(tmp_path / "new/b")).facts == {"made_in": "a"}


def test_who_commits_first_is_shared_and_the_other_keeps_its_own(tmp_path):
    first, second = (Store(tmp_path / name, tmp_path / "shared").stage("pool", 1, {}, []) for name in ("a", "b"))
    for stage in (first, second):
        stage.start()
        stage.commit({"made_in": stage.folder.parents[1].name})
    assert second.facts == {"made_in": "b"}
    assert Store(tmp_path / "c", tmp_path / "shared").stage("pool", 1, {}, []).facts == {"made_in": "a"}


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_text("ro")])
def test_a_shared_stage_that_is_whole_no_more_is_made_anew(tmp_path, damage):
    owner, reader = (Store(tmp_path / name, tmp_path / "shared") for name in ("a", "b"))
    made = commit(owner)
    commit(reader)
    damage(made.folder / "part.parquet")
    again = commit(reader)
    assert again.facts == {"made_in": "b"}
    assert not again.folder.is_symlink()
    assert commit(Store(tmp_path / "c", tmp_path / "shared")).facts == {"made_in": "b"}


def test_a_run_that_shares_no_more_leaves_a_damaged_stage_to_its_owner(tmp_path):
    owner, reader = (Store(tmp_path / name, tmp_path / "shared") for name in ("a", "b"))
    made = commit(owner)
    commit(reader)
    (made.folder / "part.parquet").write_text("ro")
    left = (made.folder / "_manifest.json").read_bytes()
    again = commit(Store(tmp_path / "b"))
    assert (again.facts, again.folder.is_symlink()) == ({"made_in": "b"}, False)
    assert (made.folder / "_manifest.json").read_bytes() == left


def test_a_shared_stage_whose_folder_is_gone_is_made_anew(tmp_path):
    commit(Store(tmp_path / "a", tmp_path / "shared"))
    reader = Store(tmp_path / "b", tmp_path / "shared")
    commit(reader)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert commit(reader).facts == {"made_in": "b"}
