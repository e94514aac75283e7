"""Results as tables for an 80-column terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from divsel_ray.config.reference import SECTION, Setting

if TYPE_CHECKING:
    from divsel_ray.clean import Leftover
    from divsel_ray.cluster.criteria import Choice
    from divsel_ray.compare_encoders import EncoderComparison
    from divsel_ray.report.compare import Comparison


def candidates_table(choice: Choice) -> Table:
    """One line per k, the recommended one in bold; fits 80 columns."""
    sample = f"{choice.candidates[0].silhouette_rows:,} rows"
    silhouettes = ("silhouette\nsimplified", f"standard\n{sample}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("k", "inertia", *silhouettes, "stability\n(ARI)", "single-\ntons", "smallest\ncluster", "largest\ncluster"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in choice.candidates:
        stability = "-" if one.stability is None else f"{one.stability:.2f} ± {one.stability_deviation:.2f}"
        measures = (f"{one.inertia:,.5g}", f"{one.simplified_silhouette:.3f}", _figure(one.silhouette, 3), stability)
        style = "bold" if one.k == choice.recommendation.k else None
        table.add_row(str(one.k), *measures, str(one.singletons), f"{one.smallest:,}", f"{one.largest:,}", style=style)
    return table


def comparison_table(found: Comparison) -> Table:
    """One line per run, and the standard deviation over runs."""
    table = Table("run", box=None, pad_edge=False, header_style="dim")
    for name in ("rows", "held-out\nloss", "gained by\ntraining", "held-out\ngap"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.compared:
        figures = (one.held_out_loss, one.gain, one.held_out_gap)
        table.add_row(escape(one.folder), f"{one.rows:,}", *(_figure(value, 3) for value in figures))
    spreads = (found.held_out_loss, found.gain, found.held_out_gap)
    deviations = ("-" if one is None else f"± {one.deviation:.3f}" for one in spreads)
    table.add_row("standard deviation", "", *deviations, style="dim")
    return table


def comparison_lines(found: Comparison) -> Iterator[str]:
    """How similar the runs' selections are, and the warning signs found."""
    yield f"overlap of selections (Jaccard) {found.overlap:.3f}; random selections: {found.overlap_by_chance:.3f}"
    for sign in found.signs:
        yield f"look at: {sign.name}: {sign.evidence}. Likely cause: {sign.cause}. Try: {sign.setting}."


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """One line per metric and model; `found` is the content of `evaluate.json`."""
    table = Table("metric", "model", box=None, pad_edge=False, header_style="dim")
    for name in ("value", "n", "against\nthe first"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for one in found["figures"]:
        metric, last = "" if one["metric"] == last else one["metric"], one["metric"]
        figures = (_with_error(one["value"], one["standard_error"]), "-" if one["count"] is None else f"{one['count']:,}")
        change = "" if one["change"] is None else _with_error(one["change"], one["change_error"], sign="+")
        table.add_row(escape(metric), escape(one["model"]), *figures, change)
    return table


def cluster_loss_table(found: Mapping[str, Any], shown: int = 10) -> Table:
    """Held-out loss of the clusters with the most rows, one column per model."""
    names = [model["name"] for model in found["models"]]
    table = Table("cluster", "rows", *map(escape, names), box=None, pad_edge=False, header_style="dim")
    for one in found["clusters"][:shown]:
        values = [_with_error(figure["value"], figure["standard_error"]) for figure in one["figures"]]
        table.add_row(str(one["cluster"]), f"{one['rows']:,}", *values)
    return table


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def encoders_table(found: EncoderComparison) -> Table:
    """One line per encoder; losses only if models were trained."""
    trained = any(one.held_out_loss is not None for one in found.encoders)
    table = Table("encoder", box=None, pad_edge=False, header_style="dim")
    losses = ("held-out\nloss", "gained by\ntraining") if trained else ()
    for name in ("dim.", "s", "silhouette", "stability\n(ARI)", "clusters\ncovered", "Vendi\n/ random", *losses):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.encoders:
        vendi = one.vendi / one.vendi_by_chance if one.vendi and one.vendi_by_chance else None
        covered = "-" if one.clusters_covered is None else f"{one.clusters_covered:.0%}"
        figures = (_figure(one.silhouette, 3), _figure(one.stability, 2), covered, _figure(vendi, 2))
        outcome = (_figure(one.held_out_loss, 3), _figure(one.gain, 3)) if trained else ()
        table.add_row(escape(one.name), f"{one.dimension:,}", f"{one.seconds:,.0f}", *figures, *outcome)
    return table


def encoder_pairs_table(found: EncoderComparison) -> Table:
    """One line per pair of encoders."""
    table = Table("pair", box=None, pad_edge=False, header_style="dim")
    for name in ("same clusters\n(ARI)", "same rows\n(Jaccard)"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.pairs:
        table.add_row(escape(f"{one.one}, {one.other}"), f"{one.clusters_agree:.2f}", f"{one.overlap:.3f}")
    return table


def settings_list(found: Sequence[Setting]) -> Iterator[RenderableType]:
    """Each setting with its default and accepted values, followed by its description."""
    for one in found:
        default = "" if one.takes == SECTION else "  required" if one.required else f" = {json.dumps(one.default)}"
        yield f"[bold]{one.place}[/bold]{escape(default)}  [dim]{escape(one.takes)}[/dim]"
        yield Padding(escape(one.description), (0, 0, 0, 4))


def leftovers_table(found: Sequence[Leftover]) -> Table:
    """One line per stage that can be removed."""
    table = Table("stage", "key", "state", box=None, pad_edge=False, header_style="dim")
    table.add_column("MiB", justify="right")
    for one in found:
        state = "finished" if one.finished else "unfinished"
        table.add_row(one.stage, one.folder.name, state, f"{one.bytes / 2**20:,.1f}")
    return table


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
