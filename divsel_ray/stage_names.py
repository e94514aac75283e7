"""Names of stages, which are also their folders: `pool`; `round-2/draw` of a round; `static/train` of the static control."""

from __future__ import annotations

_ROUND = "round-"
_CONTROL = "static"


def round_name(number: int | None, kind: str) -> str:
    """The name of a round's stage; None is the static control."""
    return f"{_CONTROL}/{kind}" if number is None else f"{_ROUND}{number}/{kind}"


def kind_of(name: str) -> str:
    """What the stage does, in whatever round: `draw` of `round-2/draw`, `pool` of `pool`."""
    return name.rpartition("/")[2]


def round_of(name: str) -> int | None:
    """The stage's round; None of the static control's stages and of those before the rounds."""
    return int(name.partition("/")[0].removeprefix(_ROUND)) if name.startswith(_ROUND) else None


def is_control(name: str) -> bool:
    """Whether the stage was made only to compare with."""
    return name.startswith(f"{_CONTROL}/")
