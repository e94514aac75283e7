"""A job that is hit by faults: traps that hold a process of a known stage, and what must be true when it is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from tests.e2e.jobs import environment, write_job, write_rows
from tests.models.tiny import save_encoder

HOOK = Path(__file__).parent / "hook"
WAIT_SECONDS = 240


@dataclass(frozen=True)
class Trap:
    """Where a process meets a fault, and which.

    Attributes:
        stage: the stage's folder in the run.
        name: what the path of the written file must have in it.
        finished: Parquet files that must lie beside it already.
        driver: meant is the job's own process, not one of Ray's workers.
        action: `hold` one process until it is killed; let every one that comes there `die`; let its disk be full (`fill`).
    """

    stage: str
    name: str = ""
    finished: int = 0
    driver: bool = False
    action: str = "hold"


TRAPS = {
    trap.stage.rpartition("/")[2]: trap
    for trap in (
        Trap("pool", "part-", finished=1),
        Trap("clean", "part-", finished=1),
        Trap("embed", finished=1),
        Trap("cluster", "part-", finished=1),
        Trap("reward"),
        Trap("quality", finished=1),
        Trap("round-1/draw", "selected"),
        Trap("round-1/train", "losses"),
        Trap("round-1/generate", "shard-", finished=2),
        Trap("round-1/score"),
        Trap("round-1/weights", driver=True),
    )
}
"""Each stage of the job by its name, and the place in it that is hit; where a stage keeps parts, some are finished by then."""


def write_faulty_job(folder: Path) -> Path:
    """A job that has every stage, small; its round 2 depends on all of round 1."""
    path = write_job(folder, engine="transformers")
    job = yaml.safe_load(path.read_text())
    job["clean"] = {"min_tokens": 1}
    job["reward"] = {
        "fit": {"base": job["embed"]["model"], "prompts": 16, "held_out": 4, "trained_layers": 1},
        "max_tokens": 64,
    }
    job["refine"]["held_out"] = 0
    job["refine"]["generate"]["shard_size"] = 2
    path.write_text(yaml.safe_dump(job))
    return path


def write_static_job(folder: Path, rows: int = 120) -> Path:
    """A job that only selects: pool, embed, cluster, draw."""
    job = {
        "budget": 12,
        "pool": {"data": str(write_rows(folder / "rows.jsonl", rows)), "partition_bytes": 2048},
        "embed": {"model": str(save_encoder(folder / "models" / "encoder"))},
        "cluster": {"k": 4},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


class FaultyRun:
    """`divsel run` in a process group of its own, started again as often as it is killed; it ends with the block.

    Attributes:
        folder: the run folder.
        starts: how often the command was started.
    """

    def __init__(self, job: Path, folder: Path, **extra: str) -> None:
        self.folder, self.starts = folder, 0
        self._job, self._traps = job, folder.with_name(f"{folder.name}.traps")
        self._traps.mkdir(parents=True, exist_ok=True)
        self._environment = environment(**hook_environment(self._traps), **extra)
        self._kept: dict[Path, tuple[int, int]] = {}

    def __enter__(self) -> FaultyRun:
        return self

    def __exit__(self, *_: object) -> None:
        if self.starts and self.process.poll() is None:
            self.kill_driver()

    def start(self) -> None:
        """Start the command."""
        command = [sys.executable, "-m", "divsel_ray.cli", "run", str(self._job), "--out", str(self.folder)]
        self.starts += 1
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, start_new_session=True)

    @property
    def _log(self) -> Path:
        return self._traps / f"start-{self.starts}.log"

    def log(self) -> str:
        """What the command that was started last has said."""
        return self._log.read_text(encoding="utf-8")

    def arm(self, trap: Trap) -> None:
        """Set a trap; the process that falls into it waits to be killed."""
        text = self._traps / "text"
        text.write_text(json.dumps(asdict(trap)))
        text.rename(self._traps / "armed")

    def held(self) -> int:
        """Wait until a process is in the trap, note what is finished by then, and return the process's id."""
        end = time.monotonic() + WAIT_SECONDS
        while not (found := list(self._traps.glob("held-*"))):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)
        found[0].unlink()
        self._kept |= finished_files(self.folder)
        return int(found[0].name.removeprefix("held-"))

    def disarm(self) -> None:
        """Take the trap away."""
        (self._traps / "armed").unlink(missing_ok=True)

    def failure(self) -> str:
        """Wait until the command has failed as it should, and return the one line that says why."""
        code = self.process.wait(WAIT_SECONDS)
        log = self.log()
        assert code == 1, log
        assert "Traceback" not in log, log
        # Ray's own notes about lost processes may come after it.
        [said] = [line for line in log.splitlines() if line.startswith("divsel: ")]
        return said

    def kill_driver(self) -> None:
        """kill -9 of the command and all in its process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def end(self) -> None:
        """Wait until the command has ended well, and see that nothing that was finished before a fault was made again."""
        code = self.process.wait(2 * WAIT_SECONDS)
        assert code == 0, self.log()
        now = finished_files(self.folder)
        again = [path for path, state in self._kept.items() if now.get(path, state) != state]
        assert not again, f"made again: {again}"


def hook_environment(traps: Path) -> dict[str, str]:
    """What makes every Python of a job, Ray's workers too, import the hook."""
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"FAULTS": str(traps), "PYTHONPATH": os.pathsep.join(paths)}


def finished_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Manifests and parts, each with what changes when it is written again."""
    found = [path for pattern in ("_manifest.json", "*.parquet") for path in folder.rglob(pattern)]
    states: dict[Path, tuple[int, int]] = {}
    for path in found:
        if ".tmp-" in str(path):
            continue
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        states[path] = (state.st_ino, state.st_mtime_ns)
    return states
