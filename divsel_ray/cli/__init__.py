"""`divsel ...`: parses, calls, prints."""

from divsel_ray.cli import jobs, selections, tools
from divsel_ray.cli.app import app

__all__ = ["app", "jobs", "selections", "tools"]
