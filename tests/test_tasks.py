"""Calls on Ray: tried again after a lost process only; what they raise comes back with its kind."""

import errno
import os
from pathlib import Path

import pytest

from divsel_ray.errors import InputError, JobError
from divsel_ray.failures import explained
from divsel_ray.progress import Silent
from divsel_ray.tasks import MAX_RETRIES, run_tasks


def mark(folder):
    tries = len(list(Path(folder).iterdir()))
    (Path(folder) / str(tries)).touch()
    return tries


def die(folder, times):
    if mark(folder) < times:
        os._exit(1)
    return "done"


def refuse(folder):
    mark(folder)
    raise InputError("row 3: not a row")


def fill(folder):
    mark(folder)
    raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/part.parquet")


def break_down(folder):
    mark(folder)
    raise ValueError("a fault of the program")


def test_a_call_that_lost_its_process_is_made_again(cluster, tmp_path):
    assert run_tasks(die, [(str(tmp_path), MAX_RETRIES)], Silent(), "calls") == ["done"]


def test_a_call_that_loses_its_process_every_time_ends_and_says_what_to_look_at(cluster, tmp_path):
    with pytest.raises(JobError, match=r"pool: its process crashed repeatedly.*same command"), explained("pool", tmp_path):
        run_tasks(die, [(str(tmp_path), 1000)], Silent(), "calls")
    assert len(list(tmp_path.iterdir())) == 1 + MAX_RETRIES


@pytest.mark.parametrize(("function", "kind"), [(refuse, InputError), (fill, JobError), (break_down, ValueError)])
def test_an_error_that_a_call_raised_is_not_tried_again(cluster, tmp_path, function, kind):
    with pytest.raises(kind), explained("pool", tmp_path):
        run_tasks(function, [(str(tmp_path),)], Silent(), "calls")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_of_a_worker_is_named_with_its_folder(cluster, tmp_path):
    with pytest.raises(JobError) as raised, explained("embed", tmp_path / "embed"):
        run_tasks(fill, [(str(tmp_path),)], Silent(), "calls")
    assert str(raised.value).startswith(f"embed: no space left on the disk of {tmp_path} (")
