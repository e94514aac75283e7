"""The application that every command is part of, and the options that several of them have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="divsel",
    help="Choose the instructions worth fine-tuning on: diverse first, good second, refined by what the model learns.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, e.g. cluster.k=64 seed=1.", metavar="[KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a second run of the same job resumes what it holds.")]
