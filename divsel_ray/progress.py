"""How a stage tells the user where it is: one small protocol, so that no stage knows about terminals."""

from __future__ import annotations

from typing import Protocol


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
