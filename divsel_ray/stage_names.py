"""Stage names, which are also folder names: `pool`; `round-2/draw` in a round; `static/train` for the static control."""

from __future__ import annotations

_ROUND = "round-"
_CONTROL = "static"


def round_name(number: int | None, kind: str) -> str:
    """The name of a round's stage; the number None stands for the static control."""
    return f"{_CONTROL}/{kind}" if number is None else f"{_ROUND}{number}/{kind}"


def kind_of(name: str) -> str:
    """The kind of a stage, regardless of the round: `draw` for `round-2/draw`, `pool` for `pool`."""
    return name.rpartition("/")[2]


def round_of(name: str) -> int | None:
    """The round of a stage; None for stages of the static control and those before the rounds."""
    return int(name.partition("/")[0].removeprefix(_ROUND)) if name.startswith(_ROUND) else None


def is_control(name: str) -> bool:
    """Whether the stage belongs to the static control, which exists only for comparison."""
    return name.startswith(f"{_CONTROL}/")
