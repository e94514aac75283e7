"""Results as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from divsel_ray.cluster.choose import Choice
    from divsel_ray.report.compare import Comparison


def candidates_table(choice: Choice) -> Table:
    """One line for each k, the recommended one in bold; narrow enough for 80 columns."""
    sample = f"{choice.candidates[0].silhouette_rows:,} rows"
    silhouettes = ("silhouette\nsimplified", f"standard\n{sample}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("k", "inertia", *silhouettes, "stability\n(ARI)", "single-\ntons", "smallest\ncluster", "largest\ncluster"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in choice.candidates:
        standard = "-" if one.silhouette is None else f"{one.silhouette:.3f}"
        stability = "-" if one.stability is None else f"{one.stability:.2f} ± {one.stability_deviation:.2f}"
        measures = (f"{one.inertia:,.5g}", f"{one.simplified_silhouette:.3f}", standard, stability)
        style = "bold" if one.k == choice.recommendation.k else None
        table.add_row(str(one.k), *measures, str(one.singletons), f"{one.smallest:,}", f"{one.largest:,}", style=style)
    return table


def comparison_table(found: Comparison) -> Table:
    """One line for each run, and their spread."""
    table = Table("run", box=None, pad_edge=False, header_style="dim")
    for name in ("rows", "held-out\nloss", "gained by\ntraining", "held-out\ngap"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.outcomes:
        figures = (one.held_out_loss, one.gain, one.held_out_gap)
        table.add_row(escape(one.folder), f"{one.rows:,}", *("-" if value is None else f"{value:.3f}" for value in figures))
    spreads = (found.held_out_loss, found.gain, found.held_out_gap)
    deviations = ("-" if one is None else f"± {one.deviation:.3f}" for one in spreads)
    table.add_row("standard deviation", "", *deviations, style="dim")
    return table


def comparison_lines(found: Comparison) -> Iterator[str]:
    """How far the runs chose the same rows, and what to look at."""
    yield f"overlap of selections (Jaccard) {found.overlap:.3f}; random selections: {found.overlap_by_chance:.3f}"
    for sign in found.signs:
        yield f"look at: {sign.name}: {sign.evidence}. Likely cause: {sign.cause}. Try: {sign.setting}."
