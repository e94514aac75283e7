"""One-line explanations of machine failures: a full disk or memory, a lost process or node."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from ray.exceptions import (
    ActorUnschedulableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from divsel_ray.errors import InputError, JobError, last_line

_GOES_ON = "finished work is kept; run the same command again to resume"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written|os error 28\b")
_MEANINGS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((OutOfMemoryError, MemoryError), "memory ran out; give its workers more, or lower their number or the batch size"),
    ((OutOfDiskError,), "no space left on the disk that Ray spills to (its temporary folder); free some space there"),
    ((ObjectStoreFullError,), "Ray's object store is full; give the cluster more memory"),
    ((NodeDiedError, LocalRayletDiedError), "the node that worked on it was lost; check that all nodes of the cluster are up"),
    ((ActorUnschedulableError, TaskUnschedulableError), "no node has the resources it requests; see `divsel plan`"),
    (
        (WorkerCrashedError, RayActorError),
        "its process crashed repeatedly; a common cause is lack of memory, see `dmesg` on its node",
    ),
    ((ObjectLostError,), "data was lost with the node that held it; check that all nodes of the cluster are up"),
    ((RuntimeEnvSetupError,), "a node could not set up the environment of its processes; see its logs"),
    ((GetTimeoutError,), "the cluster did not respond in time; check that all of its nodes are up"),
)
_TEXTS = (
    (re.compile(r"\bMemoryError\b|CUDA out of memory|can't allocate memory|Unable to allocate"), _MEANINGS[0][1]),
    (re.compile(r"execution made no progress for at least"), "no progress for a long time; check that the cluster has free CPUs"),
)
"""Messages of libraries without a specific error type."""


@contextlib.contextmanager
def explained(stage: str, folder: Path | None = None) -> Iterator[None]:
    """Turn a failure of the machines, not of the program, into one line for the user; other errors pass unchanged.

    Args:
        stage: the failing stage or step, e.g. `round-1/train`.
        folder: the folder that it writes to, if known.

    Raises:
        JobError: a disk or memory is full, or a process, a node or its data was lost for good.
    """
    try:
        yield
    except (InputError, JobError):
        raise
    except Exception as error:
        reason = reason_of(error, folder)
        if reason is None:
            raise
        raise JobError(f"{stage}: {reason}; {_GOES_ON}") from error


def reason_of(error: BaseException, folder: Path | None = None) -> str | None:
    """Which machine failure an error reports, and what to check; None for other errors."""
    chain = list(_chain(error))
    # The original cause still has its errno and file name; the errors that wrap it have only its text.
    for one in reversed(chain):
        if said := _said_full(one):
            return f"no space left on the disk of {_place(one) or folder or 'the run folder'} ({said}); free some space"
    for kinds, meaning in _MEANINGS:
        if any(isinstance(one, kinds) for one in chain):
            return meaning
    return next((meaning for text, meaning in _TEXTS if any(text.search(str(one)) for one in chain)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, across processes."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _said_full(error: BaseException) -> str | None:
    """The line in which an error reports a full disk; None for other errors."""
    last = last_line(error)
    if getattr(error, "errno", None) in _FULL:
        return last
    # Ray Data passes on only the text of a worker's exception.
    lines = str(error).splitlines() if isinstance(error, RayTaskError) else [last]
    return next((line.strip() for line in reversed(lines) if _FULL_TEXT.search(line)), None)


def _place(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return str(Path(name).parent) if isinstance(name, str) else None
