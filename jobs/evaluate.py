"""Entry point for `divsel evaluate` as a job on a Ray cluster, submitted to Ray's job server.

    ray job submit --address http://localhost:8265 --working-dir . -- \\
        python jobs/evaluate.py /shared/runs/alpaca --task gsm8k --humaneval --out /shared/runs/alpaca/evaluate

Accepts the arguments of `divsel evaluate`. Models and results must be on storage that every node mounts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from divsel_ray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
