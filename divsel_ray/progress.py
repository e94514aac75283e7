"""Progress reporting: one small protocol, so that stages need to know nothing about terminals."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Receives the reports of the pipeline and its stages."""

    def note(self, text: str) -> None:
        """Show one line."""

    def start(self, stage: str) -> None:
        """Report that a stage begins."""

    def advance(self, done: int, total: int, unit: str) -> None:
        """Report that the running stage has finished `done` of `total` units (rows, prompts, steps)."""

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Report that a stage is committed; `cached` if it already was before."""


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def start(self, stage: str) -> None:
        """Do nothing."""

    def advance(self, done: int, total: int, unit: str) -> None:
        """Do nothing."""

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Do nothing."""


class Terminal:
    """A line for each finished stage and, on a terminal, a bar for the running one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        columns = (
            TextColumn("  {task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bars = Bars(*columns, console=console, transient=True)
        self._task = self._bars.add_task("", visible=False, unit="", rate="", total=None)

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """Print the line above the bar."""
        self._console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)

    def start(self, stage: str) -> None:
        """Show an indeterminate bar until the stage reports its total; without a terminal, print a line."""
        self._began = time.monotonic()
        # Resetting the task would keep its total.
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(stage, total=None, unit="", rate="")
        if not self._console.is_terminal:
            self._console.print(f"  {stage:<18} ...", highlight=False)

    def advance(self, done: int, total: int, unit: str) -> None:
        """Update the bar."""
        rate = f"{done / max(time.monotonic() - self._began, 1e-9):,.1f}/s"
        self._bars.update(self._task, completed=done, total=total, unit=unit, rate=rate)

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Replace the bar with a permanent line."""
        self._bars.update(self._task, visible=False)
        mark, spent = ("=", "cached") if cached else ("+", f"{time.monotonic() - self._began:,.1f} s")
        self._console.print(f"{mark} {stage:<18} {escape(text)}  [dim]{spent}[/dim]", highlight=False, soft_wrap=True)
