"""Failures of machines are told in one line with what to look at; those of the program pass as they are."""

import errno

import pytest

from divsel_ray.errors import InputError, JobError
from divsel_ray.failures import explained


def test_a_full_disk_is_known_of_what_ray_data_leaves_of_the_error(tmp_path):
    from ray.exceptions import RayTaskError, UserCodeException

    text = '  File "stage.py", line 3\nOSError: [Errno 28] No space left on device\n\nUserCodeException: UDF failed'
    with pytest.raises(JobError) as raised, explained("embed", tmp_path):
        raise RayTaskError("submit", text, UserCodeException("UDF failed")).as_instanceof_cause()
    assert str(raised.value).startswith(
        f"embed: no space left on the disk of {tmp_path} (OSError: [Errno 28] No space left on device); "
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError("4096 requested and 0 written"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_every_library_s_way_to_say_that_the_disk_is_full_is_known(error, tmp_path):
    with pytest.raises(JobError, match=f"score: no space left on the disk of {tmp_path} "), explained("score", tmp_path):
        raise error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_memory_that_ran_out_is_told_as_such(error):
    with pytest.raises(JobError, match="train: memory ran out"), explained("train"):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError("x"), InputError("x"), JobError("x"), KeyError("x")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as raised, explained("draw"):
        raise error
    assert raised.value is error
