"""Entry point of `python -m divsel_ray.cli`."""

import os

from divsel_ray.cli import app

os.environ.setdefault("PYTHONUNBUFFERED", "1")
app()
