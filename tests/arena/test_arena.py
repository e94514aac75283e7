"""A whole arena on tiny models, from the command line, killed and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from divsel_ray.config import TrainConfig
from divsel_ray.progress import Silent
from divsel_ray.train.stage import Round, train_here, train_round, trained_folder
from tests.e2e.jobs import divsel, environment, write_rows
from tests.json_lines import read_lines
from tests.models.tiny import save_encoder, save_language_model, save_reward_model
from tests.report.conftest import HOSTILE
from tests.train.rows import conversations
from tests.train.rows import write_rows as write_training_rows

pytestmark = pytest.mark.slow

BUDGET, SEEDS, EVALUATION = 8, 3, 12


def write_arena(folder):
    """Two samplers, one of them random, shuffled feedback, three seeds, tiny rows of four hostile tasks."""
    rows = read_lines(write_rows(folder / "plain.jsonl", 80))
    labelled = [json.dumps({**row, "task": f"{at % 4} {HOSTILE}"}) for at, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(labelled) + "\n")
    models = folder / "models"
    train = {"model": str(save_language_model(models / "lm")), "max_tokens": 48, "learning_rate": 0.01}
    generate = {"engine": "transformers", "max_prompt_tokens": 32, "max_new_tokens": 4}
    job = {
        "budget": BUDGET,
        "pool": {"data": str(folder / "rows.jsonl")},
        "embed": {"model": str(save_encoder(models / "encoder"))},
        "cluster": {"k": 3},
        "reward": {"model": str(save_reward_model(models / "reward")), "max_tokens": 64},
        "select": {"sampler": "kmrandom"},
        "refine": {"rounds": 2, "train": train, "generate": generate},
    }
    arena = {
        "samplers": ["random", "kmrandom"],
        "iterative": ["shuffled"],
        "seeds": list(range(SEEDS)),
        "clusters": "once",
        "evaluation": {"share": 0.5, "max_rows": EVALUATION, "label": "task"},
        "spoil": {"share": 0.3},
        "bootstrap": 200,
        "job": job,
    }
    (folder / "arena.yaml").write_text(yaml.safe_dump(arena))
    return folder / "arena.yaml"


def finished_cells(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("arena/*/cell/*/_manifest.json")}


def killed_after(cells, config, folder):
    """Start the command, kill it with all its processes once it has so many cells, and return those."""
    command = [sys.executable, "-m", "divsel_ray.cli", "arena", str(config), "--out", str(folder)]
    with (folder.parent / "killed.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    end = time.monotonic() + 600
    while len(finished_cells(folder)) < cells and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert len(finished_cells(folder)) >= cells, (folder.parent / "killed.log").read_text()
    return finished_cells(folder)


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """The folder of an arena that was killed and gone on with, what it had by then, and what it said in the end."""
    config = write_arena(tmp_path_factory.mktemp("arena"))
    folder = config.parent / "out"
    before = killed_after(3, config, folder)
    done = divsel("arena", config, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, before, done


@pytest.fixture(scope="module")
def record(arena):
    return json.loads((arena[0] / "arena.json").read_text())


def test_finished_cells_are_not_made_again(arena):
    folder, before, done = arena
    now = finished_cells(folder)
    assert len(now) == 1 + 4 * SEEDS
    assert {path: now[path] for path in before} == before
    assert f"{len(now)} of {len(now)} cells" in done.stderr


def test_every_contender_has_the_budget_and_every_seed(arena, record):
    cells = [json.loads(path.read_text())["facts"] for path in finished_cells(arena[0])]
    assert {cell["rows"] for cell in cells if cell["seed"] is not None} == {BUDGET}
    names = {"base", "random", "kmrandom", "random-long", "iterative-shuffled"}
    assert {one["contender"]["name"]: len(one["losses"]) for one in record["standings"]} == {
        name: 1 if name == "base" else SEEDS for name in names
    }
    assert record["pool"]["evaluation"] == EVALUATION


def test_random_at_equal_compute_has_randoms_rows_and_more_passes(arena):
    cells = {cell["contender"]: cell for cell in (json.loads(p.read_text())["facts"] for p in finished_cells(arena[0]))}
    # Rounds of 4 and 8 rows: 12 x 3 passes to train, 12 to generate, over 8 x 3.
    assert (cells["random-long"]["epochs"], cells["random"]["epochs"]) == (2, 1)
    assert cells["random-long"]["training"]["tokens"] == 2 * cells["random"]["training"]["tokens"]


def test_no_contender_trains_on_evaluation_rows_and_spoiled_rows_are_counted(arena, record):
    folder = arena[0]
    [evaluation] = folder.glob("arena/rows/*/evaluation.parquet")
    held = set(pq.read_table(evaluation)["row_id"].to_pylist())
    [marks] = folder.glob("arena/rows/*/marks/*.parquet")
    spoiled = {row["row_id"] for row in pq.read_table(marks).to_pylist() if row["fault"]}
    assert len(spoiled) == sum(record["pool"]["faults"].values()) > 0
    draws = list(folder.glob("static/draw/*/selected.parquet"))
    assert len(draws) == 2 * SEEDS
    taken = [set(pq.read_table(draw)["row_id"].to_pylist()) for draw in draws]
    assert not any(held & rows for rows in taken)
    shares = [one["spoiled"]["mean"] for one in record["standings"] if one["contender"]["name"] in ("random", "kmrandom")]
    assert sum(shares) / 2 == pytest.approx(sum(len(rows & spoiled) for rows in taken) / (2 * SEEDS * BUDGET))


def test_means_are_those_of_the_losses_that_are_kept(arena, record):
    means = []
    for path in arena[0].glob("arena/kmrandom-seed-*/cell/*/losses.parquet"):
        table = pq.read_table(path)
        assert len(table) == EVALUATION
        means.append((table["nats"].to_numpy() / table["tokens"].to_numpy()).mean())
    [found] = [one for one in record["standings"] if one["contender"]["name"] == "kmrandom"]
    assert sorted(found["losses"]) == pytest.approx(sorted(means))
    assert found["loss"]["mean"] == pytest.approx(sum(means) / SEEDS)


def test_the_page_holds_labels_as_text(arena):
    page = (arena[0] / "arena.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"<script>alert|<img", page)


def test_a_worker_that_stays_trains_as_ray_train_does(cluster, tmp_path):
    rows = conversations(9)
    files = [write_training_rows(tmp_path / f"{len(part)}.parquet", part) for part in (rows, rows[:2])]
    round_ = Round(*files, seed=3)
    config = TrainConfig(model=str(save_language_model(tmp_path / "lm")), max_tokens=48, epochs=2)
    train_round(round_, config, tmp_path / "apart", cluster, Silent())
    assert train_here(round_, config, tmp_path / "here")["steps"] == 6
    [apart], [here] = (list(trained_folder(tmp_path / name, config).glob("*.safetensors")) for name in ("apart", "here"))
    one, other = load_file(apart), load_file(here)
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
