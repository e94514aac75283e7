"""The process in which a program runs: `python -I confined.py`, a JSON request on standard input, the answer on standard output.

It confines itself before the program starts. If the kernel allows it: a network namespace without any network, all files
read-only except in the current folder, no other process visible, and none left behind. Always: limits on memory, CPU time
and file size, and a refusal of Python's own sockets, processes and writes elsewhere (`sys.addaudithook`), which stops what
a language model writes by chance, but not a program written to break out.

The answer is one line (JSON) with the kinds of confinement, written when the program starts; then the request's nonce, if the
program ran to its end. After an early exit, with any status, the nonce is missing; after an exception, its name follows
instead. A program that searches this process's memory for the nonce could still write it.

It uses only the standard library because it runs apart from the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NETWORK, FILES, PROCESSES, PYTHON = "network", "files", "processes", "python"
"""Kinds of confinement: the kernel's namespaces, and Python's audit hook."""
_NEW_MOUNTS, _NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE, _READ_ONLY = 0x1000, 0x4000, 0x40000, 0x1
_MOUNT_SETATTR, _AT_RECURSIVE, _AT_FDCWD = 442, 0x8000, -100
_CAPABILITIES_VERSION = 0x20080522
_NO_NEW_PRIVILEGES, _PARENT_DEATH_SIGNAL = 38, 1
_ANSWER_CHARS = 200
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = ("socket.", "subprocess.", "os.system", "os.fork", "os.exec", "os.posix_spawn", "os.kill", "pty.", "ctypes.")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate", "os.link", "os.symlink")


def main() -> None:
    """Read the request, confine this process, run the program, write the answer."""
    request = json.load(sys.stdin)
    out = os.dup(1)
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(os.devnull, mode), descriptor)
    kinds = isolate(Path.cwd())
    _limit(request)
    os.write(out, (json.dumps([*kinds, PYTHON]) + "\n").encode())
    answer = run(request["program"], request["nonce"])
    os.write(out, answer.encode(errors="replace"))
    os._exit(0)


def run(program: str, nonce: str) -> str:
    """Run the program; returns the nonce if it ends normally, else the name and message of the exception."""
    sys.addaudithook(_hook(str(Path.cwd())))
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:_ANSWER_CHARS].removesuffix(": ")
    return nonce


def isolate(folder: Path) -> list[str]:
    """Enter namespaces, as far as the kernel allows; returns their kinds."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    kinds = [NETWORK, FILES, PROCESSES] if _unshare(libc) else []
    if kinds:
        _become_first_process()
        libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if not _make_read_only(libc, folder):
            kinds.remove(FILES)
    _drop_capabilities(libc)
    return kinds


def _unshare(libc: Any) -> bool:
    """Leave the namespaces of network, files and processes, via a new user namespace if necessary; returns success."""
    kinds, user, group = _NEW_NETWORK | _NEW_MOUNTS | _NEW_PROCESSES, os.geteuid(), os.getegid()
    if libc.unshare(kinds) == 0:
        return True
    if libc.unshare(kinds | _NEW_USER) != 0:
        return False
    # Without a mapping the process could not create files in its own folder.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(text, encoding="ascii")
    return True


def _become_first_process() -> None:
    """Continue as the first process of the new namespace, whose end also ends all others; the old process waits for it."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _make_read_only(libc: Any, folder: Path) -> bool:
    """Make all files outside a folder read-only, and hide the processes shown by /proc; returns success."""
    here, attributes = os.fsencode(folder), (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    writable = (ctypes.c_uint64 * 4)(0, _READ_ONLY, 0, 0)
    size = ctypes.sizeof(attributes)
    done = [
        libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None),
        libc.mount(here, here, None, _BIND, None),
        libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), size),
        libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, here, 0, ctypes.byref(writable), size),
        libc.mount(b"none", b"/proc", b"tmpfs", _READ_ONLY, None),
    ]
    # The current folder still refers to the one beneath the new mount.
    os.chdir(folder)
    return not any(done)


def _drop_capabilities(libc: Any) -> None:
    """Drop the privileges that could undo the confinement, for this process and its children."""
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)())


def _limit(request: dict[str, Any]) -> None:
    seconds = int(request["seconds"]) + 1
    limits = {
        resource.RLIMIT_AS: request["memory_bytes"],
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: request["file_bytes"],
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses sockets, processes, and writes outside a folder."""

    def outside(path: object) -> bool:
        """Whether a path lies outside the folder."""
        if isinstance(path, int) or path is None:
            return False
        place = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100 (called at any time)
        return place != os.devnull and not f"{place}/".startswith(f"{folder}/")

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        writes = event == "open" and bool(arguments[2] & _WRITES)
        if (writes or event.startswith(_CHANGES)) and outside(arguments[0]):
            raise PermissionError(f"{event} outside the program's folder is not allowed here")

    return refuse


if __name__ == "__main__":
    main()
