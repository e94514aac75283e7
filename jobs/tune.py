"""Entry point for `divsel tune` as a job on a Ray cluster, submitted to Ray's job server.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/tune.py jobs/configs/tune_k.yaml --out /shared/runs/tune-k

Accepts the arguments of `divsel tune`. The output folder must be on storage that every node mounts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["tune", *sys.argv[1:]])
