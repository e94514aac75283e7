"""The job a Ray cluster runs: `divsel run` on the cluster that Ray's job server connects it to.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/run.py jobs/configs/alpaca.yaml --out /shared/runs/alpaca

Takes the arguments of `divsel run`. The run folder must lie on storage that every node mounts. `divsel submit` does the same,
checks the job before it is sent, and also from a folder that is not this repository.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])
