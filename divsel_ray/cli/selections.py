"""Commands on selections: make one from files, verify it, export it for a trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from divsel_ray.cli.app import Panel, app
from divsel_ray.cli.console import AsJson, Quiet, print_result, reported, resumable, say
from divsel_ray.config import Config
from divsel_ray.config.files import build_config, override
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress

Quality = Annotated[
    str,
    typer.Option(
        help="column:NAME, given:FILE, reward:MODEL, ifd:MODEL, perplexity:MODEL, deita, none, or judge "
        "(with --set quality.judge.model=NAME and the like)."
    ),
]


@app.command(rich_help_panel=Panel.SELECT)
def select(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", help="Files, folders, globs, s3:// or gs:// URLs, hf:OWNER/NAME; JSON, JSONL, Parquet or CSV."
        ),
    ],
    budget: Annotated[
        str, typer.Option("--budget", "-n", help="Rows to select; several, e.g. 1000,5000, give nested selections.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .jsonl or .parquet.")],
    unit: Annotated[str, typer.Option(help="Unit of --budget: rows or tokens.")] = "rows",
    k: Annotated[int | None, typer.Option("--k", help="Number of clusters. Default: 256, or rows / 20 if that is less.")] = None,
    sampler: Annotated[str, typer.Option(help="kmq (favours rows of high quality), or another of `divsel samplers`.")] = "kmq",
    quality: Quality = "none",
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Your own vectors: Parquet with row_id and embedding, or .npy in the order of the one input file."),
    ] = None,
    model: Annotated[str, typer.Option(help="Embedding model: folder, Hugging Face id or package:NAME.")] = "",
    include: Annotated[Path | None, typer.Option(help="Rows to include: row ids in a file, or a selection to extend.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="Rows to leave out: row ids in a file, or a selection.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help="SOURCE=N: exactly N from that input file. Repeatable.")] = None,
    data_format: Annotated[str, typer.Option("--format", help="Row format; auto detects and reports it.")] = "auto",
    max_bad_rows: Annotated[int | None, typer.Option(help="Bad rows tolerated. Default: 100 or 1 %, whichever is more.")] = None,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Accept a pool smaller than the budget.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, e.g. clean.near_duplicates=0.8. Repeatable.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of stages, quarantine and manifest. Default: OUT.divsel")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Select exactly N rows from instruction files and write them to one file.

    Example: `divsel select chats.jsonl --budget 1000 --quality column:score --out selected.jsonl`

    Example: `divsel select data/ -n 1000,5000 --sampler facility --set clean.near_duplicates=0.8 -o picked.jsonl`
    """
    with reported(quiet) as progress:
        from divsel_ray.data.remote import WORK_SUFFIX

        budgets, column = _budgets(budget), quality.removeprefix("column:") if quality.startswith("column:") else None
        values: dict[str, Any] = {
            "budget": budgets[-1],
            "nested": budgets[:-1],
            "budget_unit": unit,
            "allow_fewer": allow_fewer,
            "seed": seed,
            "pool": {"data": data, "format": data_format, "max_bad_rows": max_bad_rows, "score_column": column or None},
            "cluster": {"k": k},
            "quality": {"source": quality},
            "select": {"sampler": sampler, **_lists(include, exclude), "quotas": dict(_quota(one) for one in quota or [])},
            "embed": {"given": embeddings and str(embeddings), **({"model": model} if model else {})},
        }
        config = build_config(override(values, settings or []), "select")
        _select(config, out, work or out.with_name(f"{out.name}{WORK_SUFFIX}"), progress, quiet, as_json)


def _lists(include: Path | None, exclude: Path | None) -> dict[str, str | None]:
    return {name: None if path is None else str(path) for name, path in (("include", include), ("exclude", exclude))}


def _budgets(text: str) -> list[int]:
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--budget {text!r}: expected a number of rows, or several separated by commas, e.g. 1000,5000")
    return sorted({int(part) for part in parts})


def _quota(text: str) -> tuple[str, int]:
    source, sign, number = text.rpartition("=")
    if not (sign and source and number.isdecimal()):
        raise InputError(f"--quota {text!r}: expected SOURCE=N, e.g. chats.jsonl=500; a source is the name of an input file")
    return source, int(number)


@app.command(rich_help_panel=Panel.SELECT)
def samplers(as_json: AsJson = False) -> None:
    """List the samplers: which rows each selects, and the memory it needs for a pool of a million rows.

    In running times, n is the pool's rows, d the dimension, b the rows selected and k the clusters; the default is O(n).

    Memory is for 384 dimensions, 256 clusters and 10,000 selected rows. A draw that needs more memory than is available is
    refused.
    """
    from divsel_ray.config import SelectConfig
    from divsel_ray.select.registry import SAMPLERS, memory_of

    gib = {name: memory_of(sampler, 1_000_000, 384, 256, 10_000, SelectConfig()) / 2**30 for name, sampler in SAMPLERS.items()}
    if as_json:
        typer.echo(json.dumps({name: {"takes": one.summary, "gib": round(gib[name], 2)} for name, one in SAMPLERS.items()}))
        return
    table = Table("sampler", "takes", box=None, pad_edge=False, header_style="dim")
    table.add_column("GiB for\na million rows", justify="right")
    for name, sampler in SAMPLERS.items():
        table.add_row(f"[bold]{name}[/bold]", escape(sampler.summary), f"{gib[name]:.1f}")
    Console().print(table)


@app.command(rich_help_panel=Panel.SELECT)
def verify(
    folder: Annotated[Path, typer.Argument(help="A finished run folder, or the .divsel folder of a selection.", metavar="RUN")],
    as_json: AsJson = False,
) -> None:
    """Verify that a run's selection is reproducible: redraw it from the run folder and report any difference.

    Embeddings, clusters, quality and rewards are used unchanged; the files are first checked against their hashes.
    """
    with reported(quiet=True):
        from divsel_ray.verify import verify_run

        print_result(verify_run(folder), as_json)


@app.command(rich_help_panel=Panel.SELECT)
def export(
    selection: Annotated[Path, typer.Argument(help="A run folder, or a selection (.jsonl or .parquet).", metavar="SELECTION")],
    trainer: Annotated[str, typer.Option("--to", help="llama-factory, axolotl or trl.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; other entries in it are kept.")],
    name: Annotated[str | None, typer.Option(help="Name of the dataset. Default: the selection's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a selection for a trainer: the data, and the entry of the trainer's configuration that refers to it.

    Example: `divsel export runs/job --to llama-factory --out LLaMA-Factory/data`
    """
    with reported(quiet=True):
        from divsel_ray.data.trainers import export_selection

        file = selection / "selection.parquet" if selection.is_dir() else selection
        data, entry = export_selection(file, trainer, out, name)
        print_result({"data": str(data), "entry": str(entry)}, as_json)


def _select(config: Config, out: Path, work: Path, progress: Progress, quiet: bool, as_json: bool) -> None:
    from divsel_ray.pipeline import select_rows
    from divsel_ray.report.page import write_report

    if config.quality.source == "none" and config.select.sampler == "kmq":
        say(quiet, "No --quality given: all rows of a cluster are equally likely (kMQ is then the same as kM-Random).")
    with resumable():
        rows = select_rows(config, out, work, progress)
    paths = {"selection": str(out), "report": str(write_report(work)), "work": str(work)}
    print_result({"rows": rows, **paths}, as_json)
