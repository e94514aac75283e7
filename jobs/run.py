"""Entry point for `divsel run` as a job on a Ray cluster, submitted to Ray's job server.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/run.py jobs/configs/alpaca.yaml --out /shared/runs/alpaca

Accepts the arguments of `divsel run`. The run folder must be on storage that every node mounts. `divsel submit` does the
same, checks the job before sending it, and also works outside this repository.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])
