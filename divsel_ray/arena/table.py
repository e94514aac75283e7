"""The result as a table for a terminal with 80 columns."""

from __future__ import annotations

from rich.table import Table

from divsel_ray.arena.bootstrap import LEVEL, Interval
from divsel_ray.arena.contenders import RANDOM
from divsel_ray.arena.result import Result


def standings_table(result: Result) -> Table:
    """One line per contender, lowest loss first; those that differ from random are bold."""
    spoiled = result.settings["spoil"] is not None
    table = Table("contender", box=None, pad_edge=False, header_style="dim")
    for name in ("loss", f"vs random\n[{100 * LEVEL:.0f} %]", "tasks", *(["spoiled"] if spoiled else []), "CPU s", "GPU s"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in result.standings:
        shares = [one.covered, *([one.spoiled] if spoiled else [])]
        seconds = [f"{value:,.0f}" if value else "-" for value in (one.cpu_s, one.gpu_s)]
        style = "bold" if RANDOM in one.differences and one.differences[RANDOM].excludes_zero else None
        found = _span(one.differences.get(RANDOM))
        table.add_row(one.title, f"{one.loss.mean:.3f}", found, *map(_share, shares), *seconds, style=style)
    return table


def _span(found: Interval | None) -> str:
    return "-" if found is None else f"{found.mean:+.3f}\n[{found.low:+.3f} {found.high:+.3f}]"


def _share(found: Interval | None) -> str:
    return "-" if found is None else f"{found.mean:.0%}"
