"""`divsel ...`: parses, calls, prints."""

from divsel_ray.cli import experiments, jobs, selections, tools
from divsel_ray.cli.app import app

__all__ = ["app", "experiments", "jobs", "selections", "tools"]
