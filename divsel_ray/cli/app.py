"""The Typer application that all commands register with, and the options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from divsel_ray import __version__


class Panel(StrEnum):
    """Groups of commands, in the order shown by the help."""

    BEGIN = "Get started"
    SELECT = "Select rows from files"
    JOB = "Run a configured job"
    COMPARE = "Measure and compare"


app = typer.Typer(
    name="divsel",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"divsel-ray {__version__}")
        raise typer.Exit


@app.callback()
def divsel(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version)] = False,
) -> None:
    """Choose the instructions worth fine-tuning on: diverse first, good second, refined by what the model learns."""


Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to override, e.g. cluster.k=64 seed=1.", metavar="KEY=VALUE")
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; the same command resumes from it. Default: in runs/.")]
