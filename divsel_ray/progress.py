"""How a stage tells the user where it is: one small protocol, so that no stage knows about terminals."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """What the pipeline and its stages report to."""

    def note(self, text: str) -> None:
        """Say one line."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def advance(self, done: int, total: int, unit: str) -> None:
        """The running stage has finished `done` of `total` units (rows, prompts, steps)."""

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """A stage is committed; `cached` when it was there already."""


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def start(self, stage: str) -> None:
        """Say nothing."""

    def advance(self, done: int, total: int, unit: str) -> None:
        """Say nothing."""

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Say nothing."""


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
        """Show a bar without an end until the stage says how much there is; a line where there is no terminal."""
        self._began = time.monotonic()
        # A task that is reset keeps its total.
        self._bars.remove_task(self._task)
        self._task = self._bars.add_task(stage, total=None, unit="", rate="")
        if not self._console.is_terminal:
            self._console.print(f"  {stage:<18} ...", highlight=False)

    def advance(self, done: int, total: int, unit: str) -> None:
        """Move the bar."""
        rate = f"{done / max(time.monotonic() - self._began, 1e-9):,.1f}/s"
        self._bars.update(self._task, completed=done, total=total, unit=unit, rate=rate)

    def finish(self, stage: str, text: str, *, cached: bool) -> None:
        """Replace the bar by a line that stays."""
        self._bars.update(self._task, visible=False)
        mark, spent = ("=", "cached") if cached else ("+", f"{time.monotonic() - self._began:,.1f} s")
        self._console.print(f"{mark} {stage:<18} {escape(text)}  [dim]{spent}[/dim]", highlight=False, soft_wrap=True)
