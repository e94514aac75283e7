"""How commands speak: what they say, how they end, and the options that all of them have."""

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
    """The result on standard output: a line for each value, or one line of JSON."""
    if as_json:
        typer.echo(json.dumps(values))
    else:
        width = max([10, *map(len, values)])
        for name, value in values.items():
            typer.echo(f"{name:<{width}} {value}")


def say(quiet: bool, text: str) -> None:
    """Tell the user, unless told not to."""
    if not quiet:
        console.print(escape(text), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def reported(quiet: bool) -> Iterator[Progress]:
    """Progress for the command, and the documented exit codes for its errors."""
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
            fail(f"failed: {reason}; the same command goes on from what is finished", 1)
        # Not foreseen, so the whole trace is shown; the last line still says what happened.
        traceback.print_exc()
        said = f"{type(error).__name__}: {last_line(error)}"
        fail(f"failed: {said} (finished stages are kept; the same command goes on from there)", 1)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Let Ctrl-C end the command and name the one that resumes, which is the same."""
    try:
        yield
    except KeyboardInterrupt:
        fail(f"stopped; finished stages are kept. To resume: {_own_command()}", 130)


def _own_command() -> str:
    """The command line that is running; a script in `jobs/` is called like the command that it gives its arguments to."""
    program = Path(sys.argv[0])
    given_by_script = [program.stem] if program.parent.name == "jobs" else []
    return shlex.join(["divsel", *given_by_script, *sys.argv[1:]])


def fail(text: str, code: int) -> None:
    """Say what is wrong, in red, and end with this exit code."""
    console.print(f"divsel: {escape(text)}", highlight=False, soft_wrap=True, style="red")
    sys.stderr.flush()
    raise typer.Exit(code)
