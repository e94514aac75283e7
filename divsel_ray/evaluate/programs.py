"""Running programs that a language model wrote: each in a confined process of its own (`confined.py`), within a time limit."""

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
"""What a process may take to start, beside the program's own time."""
_ANSWER_BYTES = 4096
MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
_LACKING = {
    NETWORK: "its sockets are refused by Python alone",
    FILES: "files elsewhere that this user may write are kept from it by Python alone",
    PROCESSES: "processes that it starts are ended with it only if they stay in its group",
}


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        passed: whether it ran to its end without an exception.
        reason: why not; empty if it did.
        confined_by: what confined it, see `confined.py`.
    """

    passed: bool
    reason: str
    confined_by: tuple[str, ...] = ()

    @property
    def lacking(self) -> str:
        """What the kernel did not keep from it, as a sentence; empty where all was."""
        missing = [text for kind, text in _LACKING.items() if kind not in self.confined_by]
        return f"the kernel gives no namespaces for generated programs: {'; '.join(missing)}" if missing else ""


def run_program(program: str, seconds: float, memory_bytes: int = MEMORY_BYTES) -> Verdict:
    """Run a program to its end, in a folder of its own, without the environment of this process.

    An early exit is a failure whatever its status, and so is whatever the program prints; see `confined.py` for what
    confines it, and for what does not.

    Args:
        program: Python.
        seconds: of running time.
        memory_bytes: of address space.
    """
    nonce = secrets.token_hex(16)
    limits = {"seconds": seconds, "memory_bytes": memory_bytes, "file_bytes": FILE_BYTES}
    request = json.dumps({"program": program, "nonce": nonce, **limits})
    with tempfile.TemporaryDirectory(prefix="divsel-program-", ignore_cleanup_errors=True) as folder:
        answer, status = _converse(request, Path(folder).resolve(), seconds)
    first, _, rest = answer.partition("\n")
    kinds = tuple(json.loads(first)) if first.startswith("[") else ()
    if status is None:
        return Verdict(False, f"not done after {seconds:g} s", kinds)
    if rest == nonce and status == 0:
        return Verdict(True, "", kinds)
    return Verdict(False, rest or f"ended early with status {status}", kinds)


def _converse(request: str, folder: Path, seconds: float) -> tuple[str, int | None]:
    """What the process answered, and its exit status; None where it had to be ended."""
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
            # Its first line comes when the program starts, from where its time counts.
            select.select([process.stdout], [], [], _START_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # What the program left behind may hold the pipe open; what is in it by now is all that counts.
        os.set_blocking(process.stdout.fileno(), False)
        answer = process.stdout.read(_ANSWER_BYTES) or b""
    return answer.decode(errors="replace"), status
