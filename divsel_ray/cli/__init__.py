"""The `divsel` command line: parse arguments, call the library, print results."""

from divsel_ray.cli import experiments, jobs, selections, tools
from divsel_ray.cli.app import Panel, app

app.registered_commands.sort(key=lambda command: [*map(str, Panel)].index(str(command.rich_help_panel)))

__all__ = ["app", "experiments", "jobs", "selections", "tools"]
