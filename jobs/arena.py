"""Entry point for `divsel arena` as a job on a Ray cluster, submitted to Ray's job server.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/arena.py jobs/configs/arena.yaml --out /shared/runs/arena job.pool.data=/shared/data/rows.jsonl

Accepts the arguments of `divsel arena`. The output folder must be on storage that every node mounts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["arena", *sys.argv[1:]])
