"""Run a job, then print the GPUs that each of its actors had asked for, by class: `... CONFIG OUT [KEY=VALUE]...`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

from ray._private.state import state
from ray.core.generated.gcs_pb2 import ActorTableData

from divsel_ray.config.files import load_config
from divsel_ray.pipeline import run_job
from divsel_ray.resources import connect


def asked_gpus() -> dict[str, list[float]]:
    """GPUs of every actor that this cluster has seen, those that are over too."""
    asked = defaultdict[str, list[float]](list)
    for record in state._connect_and_get_accessor().get_actor_table(None, None):
        actor = ActorTableData.FromString(record)
        asked[actor.class_name].append(actor.required_resources.get("GPU", 0.0))
    return dict(asked)


if __name__ == "__main__":
    path, out, *overrides = sys.argv[1:]
    connect()
    run_job(load_config(path, overrides), out)
    print(json.dumps(asked_gpus()))
