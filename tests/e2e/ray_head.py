"""A real Ray head with its job server, tokens on, in a process group of its own."""

from __future__ import annotations

import json
import os
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
from typing import Any

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
    """A head without CPUs, on ports of its own, that starts a node of so many CPUs when a job asks for it."""
    gcs, dashboard, client, agent, grpc = free_ports(5)
    head = Head(f"http://127.0.0.1:{dashboard}", folder / "token")
    head.token_file.write_text("a-token-of-this-test-only")
    (folder / "scaling.json").write_text(json.dumps(scaling(f"127.0.0.1:{gcs}", node_cpus)))
    options = {"port": gcs, "dashboard-port": dashboard, "ray-client-server-port": client, "num-cpus": 0}
    options |= {"dashboard-agent-listen-port": agent, "dashboard-agent-grpc-port": grpc, "dashboard-host": "127.0.0.1"}
    options |= {"node-ip-address": "127.0.0.1", "object-store-memory": 100 << 20, "autoscaling-config": folder / "scaling.json"}
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
        given = head.environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=given, start_new_session=True)
        try:
            await_answer(head, process, folder / "head.log")
            yield head
        finally:
            end(process)


def scaling(gcs: str, node_cpus: int) -> dict[str, Any]:
    """What Ray's autoscaler may start: nodes on this machine, by the provider that Ray tests itself with."""
    worker = {
        "resources": {"CPU": node_cpus, "object_store_memory": 100 << 20},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 1,
    }
    # Nodes that are there at once: nothing is to be installed on them.
    at_once = {"disable_node_updaters": True, "disable_launch_config_check": True, "use_node_id_as_ip": True}
    return {
        "cluster_name": "fake",
        "max_workers": 1,
        "provider": {"type": "fake_multinode", "gcs_address": gcs, **at_once},
        "available_node_types": {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}, "cpu": worker},
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 10,
        "upscaling_speed": 10,
        "auth": {},
        "docker": {},
        **{f"{name}setup_commands": [] for name in ("", "head_", "worker_")},
        "initialization_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


def end(process: subprocess.Popen) -> None:
    """Let a head stop what it has started, and end what is left of its process group."""
    process.terminate()
    try:
        process.wait(30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


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
