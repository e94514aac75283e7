import numpy as np
import pytest

from divsel_ray.cluster.journal import Journal
from divsel_ray.errors import InputError


def test_what_was_written_last_is_read(tmp_path):
    journal = Journal(tmp_path / "fit.npz", "a")
    assert journal.read() is None
    journal.write({"step": 1})
    journal.write({"step": 2, "centroids": np.eye(2)})
    found = Journal(tmp_path / "fit.npz", "a").read()
    assert (int(found["step"]), found["centroids"].tolist()) == (2, [[1, 0], [0, 1]])


def test_the_state_of_something_else_is_ignored(tmp_path):
    Journal(tmp_path / "fit.npz", "a").write({"step": 1})
    assert Journal(tmp_path / "fit.npz", "b").read() is None


def test_a_damaged_file_is_ignored(tmp_path):
    path = tmp_path / "fit.npz"
    Journal(path, "a").write({"step": np.arange(1000)})
    path.write_bytes(path.read_bytes()[:700])
    assert Journal(path, "a").read() is None
    path.write_bytes(b"")
    assert Journal(path, "a").read() is None


def test_a_removed_journal_is_gone(tmp_path):
    journal = Journal(tmp_path / "fit.npz", "a")
    journal.write({"step": 1})
    journal.remove()
    journal.remove()
    assert journal.read() is None


def test_a_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "kept").write_text("all of it")
    with pytest.raises(InputError, match="is a folder; expected the name of a checkpoint file"):
        Journal(tmp_path, "a")
    assert (tmp_path / "kept").read_text() == "all of it"
