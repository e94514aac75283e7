"""Running programs written by a language model: each in its own confined process (`confined.py`), within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from divsel_ray.evaluate.confined import FILES, NETWORK, PROCESSES

_CHILD = Path(__file__).with_name("confined.py")
_START_SECONDS = 10.0
"""Time for a process to start, in addition to the program's own time."""
_ANSWER_BYTES = 4096
MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
_LACKING = {
    NETWORK: "only Python blocks their sockets",
    FILES: "only Python blocks writes to this user's files elsewhere",
    PROCESSES: "processes they start end with them only if they stay in the same process group",
}


@dataclass(frozen=True)
class Verdict:
    """The outcome of a program.

    Attributes:
        passed: whether the program ran to its end without an exception.
        reason: why it did not pass; empty if it did.
        confined_by: kinds of confinement, see `confined.py`.
    """

    passed: bool
    reason: str
    confined_by: tuple[str, ...] = ()

    @property
    def lacking(self) -> str:
        """The missing kinds of kernel confinement, as a sentence; empty if none is missing."""
        missing = [text for kind, text in _LACKING.items() if kind not in self.confined_by]
        return f"the kernel provides no namespaces to confine generated programs: {'; '.join(missing)}" if missing else ""


def run_program(program: str, seconds: float, memory_bytes: int = MEMORY_BYTES) -> Verdict:
    """Run a program to its end, in its own folder, without this process's environment variables.

    An early exit is a failure whatever its status, and the program's output is ignored; see `confined.py` for the
    confinement and its limits.

    Args:
        program: Python source.
        seconds: limit of the running time.
        memory_bytes: limit of the address space.
    """
    nonce = secrets.token_hex(16)
    limits = {"seconds": seconds, "memory_bytes": memory_bytes, "file_bytes": FILE_BYTES}
    request = json.dumps({"program": program, "nonce": nonce, **limits})
    with tempfile.TemporaryDirectory(prefix="divsel-program-", ignore_cleanup_errors=True) as folder:
        answer, status = _converse(request, Path(folder).resolve(), seconds)
    first, _, rest = answer.partition("\n")
    kinds = tuple(json.loads(first)) if first.startswith("[") else ()
    if status is None:
        return Verdict(False, f"not finished after {seconds:g} s", kinds)
    if rest == nonce and status == 0:
        return Verdict(True, "", kinds)
    return Verdict(False, rest or f"ended early with status {status}", kinds)


def _converse(request: str, folder: Path, seconds: float) -> tuple[str, int | None]:
    """The process's answer and its exit status; None if it had to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    status: int | None = None
    with process.stdout:
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(request.encode())
            # The first line arrives when the program starts, and its time counts from then.
            select.select([process.stdout], [], [], _START_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # A process left behind may keep the pipe open, so only what has been written by now is read.
        os.set_blocking(process.stdout.fileno(), False)
        answer = process.stdout.read(_ANSWER_BYTES) or b""
    return answer.decode(errors="replace"), status
