"""`divsel choose-k`: measures are kept, the answer is one k with a reason, wrong input is one line."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from divsel_ray.cli import app
from tests.cluster.vectors import blobs, write_embeddings
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder


def choose(*arguments):
    return CliRunner().invoke(app, ["choose-k", *map(str, arguments)])


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    write_embeddings(folder, blobs(320, 8))
    return folder


def test_a_folder_of_embeddings_is_measured_once_and_explained(cluster, vectors, tmp_path):
    arguments = ("--embeddings", vectors, "--grid", "4,8,16", "--out", tmp_path, "cluster.n_init=3")
    done = choose(*arguments)
    assert done.exit_code == 0, done.output
    table, answer = done.stdout.split("\nk  ")
    assert [line.split()[0] for line in table.splitlines()[-3:]] == ["4", "8", "16"]
    assert answer.split()[0] == "8"
    assert "reason     k = 8: refits reproduce its clusters" in answer
    [folder] = (tmp_path / "choose_k").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names == {"k-00004.json", "k-00008.json", "k-00016.json", "choose-k.json", "choose-k.html", "_manifest.json"}
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = choose(*arguments, "--json")
    found = json.loads(again.stdout)
    assert (found["k"], found["preferred"]) == (8, True)
    assert found["plot"] == str(folder / "choose-k.html")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_grid_measures_only_what_is_new(cluster, vectors, tmp_path):
    arguments = ("--embeddings", vectors, "--out", tmp_path, "--quiet", "--grid")
    assert choose(*arguments, "4").exit_code == 0
    [measured] = tmp_path.glob("choose_k/*/k-00004.json")
    written = measured.stat().st_mtime_ns
    done = choose(*arguments, "2,4")
    assert done.exit_code == 0, done.output
    assert measured.stat().st_mtime_ns == written
    record = json.loads((measured.parent / "choose-k.json").read_text())
    assert [one["k"] for one in record["candidates"]] == [2, 4]
    assert (measured.parent / "k-00002.json").is_file()


def test_a_job_is_embedded_first_and_run_finds_its_stages(cluster, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 60)
    config = tmp_path / "job.yaml"
    encoder = str(save_encoder(tmp_path / "encoder"))
    config.write_text(yaml.safe_dump({"budget": 5, "pool": {"data": str(data)}, "embed": {"model": encoder}}))
    done = choose(config, "cluster.max_iter=5", "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["k"] == 3
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("+")] == ["pool", "embed", "choose_k"]
    again = choose(config, "cluster.max_iter=5", "--out", tmp_path / "run", "--json")
    assert [line.split()[1] for line in again.stderr.splitlines() if line.startswith("=")] == ["pool", "embed", "choose_k"]
    planned = CliRunner().invoke(app, ["plan", str(config), "--out", str(tmp_path / "run")])
    assert planned.stdout.count(" cached") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "4,many"], "--grid '4,many': expected integers"),
        (["--grid", "0,4"], "k 0 is below 1"),
        (["--grid", "4,321"], "k 321 exceeds the pool's 320 rows"),
        (["cluster.n_init=0"], "cluster.n_init"),
        (["nowhere.yaml"], "nowhere.yaml: no such configuration file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(vectors, tmp_path, arguments, said):
    done = choose(*arguments, "--embeddings", vectors, "--out", tmp_path / "out", "--quiet")
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert said in line
    assert not list((tmp_path / "out").glob("choose_k/*"))


def test_a_folder_without_vectors_and_no_folder_at_all_are_named(tmp_path):
    done = choose("--embeddings", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "no Parquet file" in done.stderr
    assert "--embeddings" in choose("--out", tmp_path / "out").stderr


def test_too_few_rows_for_a_grid_of_its_own_are_refused(tmp_path):
    write_embeddings(tmp_path / "few", np.eye(10))
    done = choose("--embeddings", tmp_path / "few", "--out", tmp_path / "out", "--quiet")
    assert done.exit_code == 2
    assert "10 rows are too few to choose k: expected at least 40" in done.stderr


def test_help_shows_an_example():
    text = " ".join(choose("--help").stdout.split())
    assert "divsel choose-k job.yaml --out runs/job --grid 64,128,256,512" in text
    assert "--embeddings vectors/" in text
