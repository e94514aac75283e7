"""The search a Ray cluster runs: `divsel tune` on the cluster that Ray's job server connects it to.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/tune.py jobs/configs/tune_k.yaml --out /shared/runs/tune-k

Takes the arguments of `divsel tune`. The folder must lie on storage that every node mounts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["tune", *sys.argv[1:]])
