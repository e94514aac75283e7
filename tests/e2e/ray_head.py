"""A real Ray head with its job server, tokens on, in a process group of its own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.jobs import environment

WAIT_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """Where a head answers, and the file with its token."""

    url: str
    token_file: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that may use the head, its `python` and its `ray`."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return environment(PATH=path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(self.token_file))


@contextmanager
def started_head(folder: Path, node_cpus: int) -> Iterator[Head]:
    """A head of so many CPUs, on ports of its own."""
    gcs, dashboard, client, agent, grpc = free_ports(5)
    head = Head(f"http://127.0.0.1:{dashboard}", folder / "token")
    head.token_file.write_text("a-token-of-this-test-only")
    options = {"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": client, "num-cpus": node_cpus}
    options |= {"dashboard-agent-listen-port": agent, "dashboard-agent-grpc-port": grpc, "dashboard-host": "127.0.0.1"}
    options |= {"node-ip-address": "127.0.0.1", "object-store-memory": 100 << 20}
    with ExitStack() as stack:
        options["temp-dir"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        log = stack.enter_context((folder / "head.log").open("w"))
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=head.environment, start_new_session=True)
        try:
            await_answer(head, process, folder / "head.log")
            yield head
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """Let a head stop what it has started, and end what is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, below those that a kernel gives away by itself."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            one, port = stack.enter_context(socket.socket()), random.SystemRandom().randrange(20_000, 30_000)
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def await_answer(head: Head, process: subprocess.Popen, log: Path) -> None:
    """Wait until the job server takes jobs."""
    request = urllib.request.Request(f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token_file.read_text()}"})
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
