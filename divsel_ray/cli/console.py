"""Messages, exit codes and the options common to all commands."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from divsel_ray.errors import InputError, JobError, last_line
from divsel_ray.progress import Progress, Silent, Terminal

console = Console(stderr=True)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON on standard output.")]


def print_result(values: dict[str, Any], as_json: bool) -> None:
    """Print the result on standard output: one value per line, or one line of JSON."""
    if as_json:
        typer.echo(json.dumps(values))
    else:
        width = max([10, *map(len, values)])
        for name, value in values.items():
            typer.echo(f"{name:<{width}} {value}")


def say(quiet: bool, text: str) -> None:
    """Print a message on standard error, unless `quiet`."""
    if not quiet:
        console.print(escape(text), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def reported(quiet: bool) -> Iterator[Progress]:
    """Provide progress reporting and turn errors into the documented exit codes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if quiet:
            yield Silent()
        else:
            with Terminal(console) as terminal:
                yield terminal
    except InputError as error:
        fail(f"input: {error}", 2)
    except JobError as error:
        fail(f"failed: {error}", 1)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except typer.Exit:
        raise
    except Exception as error:
        from divsel_ray.failures import reason_of

        if reason := reason_of(error):
            fail(f"failed: {reason} (finished stages are kept; run the same command again to resume)", 1)
        # An unexpected error: show the full traceback; the last line still names the cause.
        traceback.print_exc()
        said = f"{type(error).__name__}: {last_line(error)}"
        fail(f"failed: {said} (finished stages are kept; run the same command again to resume)", 1)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Let Ctrl-C end the command, and print the command that resumes it (the same one)."""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"stopped; finished stages are kept. To resume: {_own_command()}", 130)


def _own_command() -> str:
    """Return the running command line; a script in `jobs/` has the name of the command that it forwards its arguments to."""
    program = Path(sys.argv[0])
    given_by_script = [program.stem] if program.parent.name == "jobs" else []
    return shlex.join(["divsel", *given_by_script, *sys.argv[1:]])


def fail(text: str, code: int) -> None:
    """Print the error in red and exit with this code."""
    console.print(f"divsel: {escape(text)}", highlight=False, soft_wrap=True, style="red")
    sys.stderr.flush()
    raise typer.Exit(code)
