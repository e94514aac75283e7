"""The arena a Ray cluster runs: `divsel arena` on the cluster that Ray's job server connects it to.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/arena.py jobs/configs/arena.yaml --out /shared/runs/arena job.pool.data=/shared/data/rows.jsonl

Takes the arguments of `divsel arena`. The folder must lie on storage that every node mounts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["arena", *sys.argv[1:]])
