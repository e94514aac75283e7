"""What the failures of machines mean: a full disk or memory, a lost process or node, in one line each."""

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

_GOES_ON = "what is finished is kept, and the same command goes on from there"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written|os error 28\b")
_MEANINGS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((OutOfMemoryError, MemoryError), "memory ran out; give its workers more, or lower their count or the size of a batch"),
    ((OutOfDiskError,), "no room left on the disk that Ray spills to (its temporary folder); free some space there"),
    ((ObjectStoreFullError,), "Ray's object store is full; give the cluster more memory"),
    ((NodeDiedError, LocalRayletDiedError), "the node that worked on it was lost; see whether the cluster has its nodes"),
    ((ActorUnschedulableError, TaskUnschedulableError), "no node can hold what it asks for; see `divsel plan`"),
    (
        (WorkerCrashedError, RayActorError),
        "its process crashed again and again; often memory ran out, see `dmesg` on its node",
    ),
    ((ObjectLostError,), "data was lost with the node that held it; see whether the cluster has its nodes"),
    ((RuntimeEnvSetupError,), "a node could not set up the environment of its processes; see its logs"),
    ((GetTimeoutError,), "the cluster did not answer in time; see whether it has its nodes"),
)
_TEXTS = (
    (re.compile(r"\bMemoryError\b|CUDA out of memory|can't allocate memory|Unable to allocate"), _MEANINGS[0][1]),
    (re.compile(r"execution made no progress for at least"), "nothing was done for long; see whether the cluster has free CPUs"),
)
"""Of libraries that have no kind of error for it."""


@contextlib.contextmanager
def explained(stage: str, folder: Path | None = None) -> Iterator[None]:
    """Turn a failure of the machines, not of the program, into one line for the user; every other error passes as it is.

    Args:
        stage: what failed, e.g. `round-1/train`.
        folder: where it writes, if that is known.

    Raises:
        JobError: a disk or memory is full, or a process, a node or what it held was lost for good.
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
    """What of the machines failed, and what to look at; None of an error of another kind."""
    chain = list(_chain(error))
    # The first cause still has its number and its file; what wraps it has only its words.
    for one in reversed(chain):
        if said := _said_full(one):
            return f"no room left on the disk of {_place(one) or folder or 'the run folder'} ({said}); free some space"
    for kinds, meaning in _MEANINGS:
        if any(isinstance(one, kinds) for one in chain):
            return meaning
    return next((meaning for text, meaning in _TEXTS if any(text.search(str(one)) for one in chain)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those it came of, across processes."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _said_full(error: BaseException) -> str | None:
    """The line in which an error says that a disk is full; None of another error."""
    last = last_line(error)
    if getattr(error, "errno", None) in _FULL:
        return last
    # Ray Data sends only the text of what a worker raised.
    lines = str(error).splitlines() if isinstance(error, RayTaskError) else [last]
    return next((line.strip() for line in reversed(lines) if _FULL_TEXT.search(line)), None)


def _place(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return str(Path(name).parent) if isinstance(name, str) else None
