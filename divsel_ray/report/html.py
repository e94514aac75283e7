"""Shared parts of all pages: rendering, number formats and the content security policy."""

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
    """Render a page, with a policy that allows only the scripts of its figures and of the colour switch.

    Args:
        template: file in this folder.
        embedded: figures embedded in the page.
        values: variables of the template, in addition to `colours`, `policy` and `version`.
    """
    templates = _environment()
    colours = Markup(templates.get_template("colours.js").render())
    allowed = policy([*embedded, f"<script>{colours}</script>"])
    return templates.get_template(template).render(**values, colours=colours, policy=allowed, version=__version__)


def _environment() -> Environment:
    """Template environment that escapes every value and rejects undefined ones."""
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
    """Content security policy that blocks all loading and allows only the inline scripts of these parts."""
    scripts = [script for part in parts for script in _SCRIPT.findall(part)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}; base-uri 'none'; form-action 'none'"
    )


def hover_text(text: str) -> str:
    """Escape a text so that plotly, which interprets some tags and entities, shows it literally; wrap it to a few lines.

    Quotes are kept: they have no meaning outside a tag, and plotly does not decode their entity.
    """
    lines = textwrap.wrap(text, _HOVER_WIDTH, max_lines=_HOVER_LINES, placeholder=" …")
    return "<br>".join(html.escape("".join(map(_printable, line)), quote=False) for line in lines)


def _printable(character: str) -> str:
    """Replace characters that affect their neighbours, such as a change of direction, with a space."""
    return character if character.isprintable() else " "


def integer(value: int | None) -> str:
    """Format with thousands separators; a dash for None."""
    return _NONE if value is None else f"{value:,}"


def figure(value: float | None, digits: int = 3) -> str:
    """Format with `digits` decimals; a dash for None and non-finite values."""
    return _NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", "−")


def measure(value: float | None) -> str:
    """Format with three significant digits, because rewards can have any scale."""
    if value is None or not math.isfinite(value):
        return _NONE
    return figure(value, 0) if abs(value) >= 100 else f"{value:#.3g}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """Format a share in percent."""
    return _NONE if value is None else f"{100 * value:.{digits}f} %"


def hours(value: float | None) -> str:
    """Format hours or money: three decimals below 10, one below 1,000, else none; a dash for None."""
    return figure(value, 3 if value is None or abs(value) < 10 else 1 if abs(value) < 1000 else 0)


def capitalize_first(text: str) -> str:
    """Capitalise the first letter and leave the rest unchanged."""
    return text[:1].upper() + text[1:]


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes or seconds, with at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
