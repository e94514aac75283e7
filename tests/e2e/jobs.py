"""A small but whole job on tiny models, and `divsel` as a user starts it: in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import yaml

from tests.json_lines import read_lines
from tests.models.tiny import WORDS, save_encoder, save_language_model, save_reward_model


def write_rows(path: Path, rows: int, seed: int = 0) -> Path:
    """Distinct prompt/completion rows of tiny words."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            words = [draw.choice(WORDS) for _ in range(12)]
            row = {"prompt": f"{number} " + " ".join(words[:6]), "completion": " ".join(words[6:]), "score": draw.random()}
            stream.write(json.dumps(row) + "\n")
    return path


def write_job(folder: Path, engine: str = "transformers", epochs: int = 1) -> Path:
    """A configuration of two rounds over 120 rows, with models made on the spot."""
    folder.mkdir(parents=True, exist_ok=True)
    models = folder / "models"
    job = {
        "budget": 12,
        "pool": {"data": str(write_rows(folder / "rows.jsonl", 120)), "partition_bytes": 2048},
        "embed": {"model": str(save_encoder(models / "encoder"))},
        "cluster": {"k": 4},
        "reward": {"model": str(save_reward_model(models / "reward")), "max_tokens": 64},
        "quality": {"source": "reward"},
        "refine": {
            "rounds": 2,
            "held_out": 4,
            "train": {"model": str(save_language_model(models / "lm")), "max_tokens": 48, "epochs": epochs},
            "generate": {"engine": engine, "max_prompt_tokens": 32, "max_new_tokens": 8, "shard_size": 8, "kv_cache_gib": 0.1},
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def environment(**extra: str) -> dict[str, str]:
    """The tests' environment without a cluster address."""
    return {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, **extra}


def divsel(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "divsel_ray.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**extra), timeout=1700, check=False)


def finished(job: Path, name: str = "undisturbed", **extra: str) -> Path:
    """The folder of this name beside a job's file, once the job has run to its end in it."""
    folder = job.parent / name
    done = divsel("run", job, "--out", folder, **extra)
    assert done.returncode == 0, done.stderr
    return folder


def selection(folder: Path) -> list[dict]:
    """The selected rows of a run."""
    return read_lines(folder / "selection.jsonl")


def stage_facts(folder: Path) -> dict[str, dict]:
    """What each stage of a finished run reported."""
    return {stage["stage"]: stage["facts"] for stage in json.loads((folder / "manifest.json").read_text())["stages"]}
