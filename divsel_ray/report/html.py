"""What every page shares: its rendering, how numbers are written, and the content security policy."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from divsel_ray import __version__

_SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
_NONE = "–"
_HOVER_WIDTH, _HOVER_LINES = 64, 4


def render(template: str, embedded: Sequence[Markup], **values: Any) -> str:
    """A page, with the switch of colours and a policy that lets no scripts run but the switch and those of its figures.

    Args:
        template: a file of this folder.
        embedded: the figures that the page embeds.
        values: what the template names, beside `colours`, `policy` and `version`.
    """
    templates = _environment()
    colours = Markup(templates.get_template("colours.js").render())
    allowed = policy([*embedded, f"<script>{colours}</script>"])
    return templates.get_template(template).render(**values, colours=colours, policy=allowed, version=__version__)


def _environment() -> Environment:
    """Every value is escaped, a missing one is an error."""
    made = Environment(
        loader=PackageLoader("divsel_ray", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {one.__name__: one for one in (integer, figure, measure, percent, duration, hours, capitalize_first)}
    return made


def policy(parts: list[str]) -> str:
    """A content security policy under which nothing is loaded and only these parts' inline scripts run."""
    scripts = [script for part in parts for script in _SCRIPT.findall(part)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def hover_text(text: str) -> str:
    """A text as plotly shows it literally: plotly reads some tags and entities as HTML. Lines are broken, few are kept.

    Quotes stay: they mean nothing outside a tag, and plotly does not know their entity.
    """
    lines = textwrap.wrap(text, _HOVER_WIDTH, max_lines=_HOVER_LINES, placeholder=" …")
    return "<br>".join(html.escape("".join(map(_printable, line)), quote=False) for line in lines)


def _printable(character: str) -> str:
    """Without what changes how its neighbours are read, such as a change of direction."""
    return character if character.isprintable() else " "


def integer(value: int | None) -> str:
    """With thousands separators; a dash for None."""
    return _NONE if value is None else f"{value:,}"


def figure(value: float | None, digits: int = 3) -> str:
    """So many decimals; a dash for None and what is not finite."""
    return _NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def measure(value: float | None) -> str:
    """Three significant digits: rewards come on any scale."""
    if value is None or not math.isfinite(value):
        return _NONE
    return figure(value, 0) if abs(value) >= 100 else f"{value:#.3g}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """A share, in percent."""
    return _NONE if value is None else f"{100 * value:.{digits}f} %"


def hours(value: float | None) -> str:
    """Hours or money: three digits after the point below 10, none above 1,000; a dash for None."""
    return figure(value, 3 if value is None or abs(value) < 10 else 1 if abs(value) < 1000 else 0)


def capitalize_first(text: str) -> str:
    """The text with its first letter large and the rest as it is."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
