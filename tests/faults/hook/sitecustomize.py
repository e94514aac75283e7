"""Imported by every Python of a job under test: brings a fault to a process that is about to write a file of some stage.

`FAULTS` names a folder. While it has a file `armed` (JSON, see `harness.Trap`), a process that is about to write what it
describes falls into the trap. Files are written through `store.atomic_path` or Python's `open`, so any stage is hit at a
known place, and nothing in the product knows of it.
"""

import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

IN_DRIVER = "default_worker.py" not in " ".join(sys.orig_argv)


class Hook(importlib.abc.MetaPathFinder):
    """Wraps `atomic_path` while `divsel_ray.store` is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "divsel_ray.store":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.atomic_path = trapped(module.atomic_path)

        spec.loader.exec_module = exec_module
        return spec


def trapped(atomic_path):
    def trapped_atomic_path(path):
        meet(str(path))
        return atomic_path(path)

    return trapped_atomic_path


def audit(event, args):
    if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
        meet(args[0])


def meet(path):
    armed = Path(os.environ["FAULTS"]) / "armed"
    try:
        trap = json.loads(armed.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if trap["driver"] != IN_DRIVER or f"/{trap['stage']}/" not in path or trap["name"] not in path:
        return
    if len(finished(Path(path).parent)) < trap["finished"]:
        return
    ACTIONS[trap["action"]](armed)


def hold(armed):
    """The first process waits here to be killed, and says which it is."""
    try:
        armed.rename(armed.with_name(f"held-{os.getpid()}"))
    except FileNotFoundError:
        return
    while True:
        time.sleep(60)


def die(_):
    """Every process that comes here dies, as if memory had run out."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill(_):
    """The process can write no more than this from here on, as on a full disk; Python ignores the signal, the write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


ACTIONS = {"hold": hold, "die": die, "fill": fill}


def finished(folder):
    return [one for one in folder.glob("*.parquet") if ".tmp-" not in one.name]


if "FAULTS" in os.environ:
    sys.meta_path.insert(0, Hook())
    sys.addaudithook(audit)
