"""The application that every command is part of, and the options that several of them have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from divsel_ray import __version__


class Panel(StrEnum):
    """Groups of commands, in the order in which the help shows them."""

    BEGIN = "Begin"
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
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", callback=_print_version)] = False,
) -> None:
    """Choose the instructions worth fine-tuning on: diverse first, good second, refined by what the model learns."""


Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change, e.g. cluster.k=64 seed=1.", metavar="KEY=VALUE")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a second run of the same job resumes what it holds.")]
