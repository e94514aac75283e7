"""`divsel verify`: the selection is drawn again, and whatever was changed since is found."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from divsel_ray.cli import app
from divsel_ray.store import file_digest
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder


def divsel(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(cluster, tmp_path_factory):
    """A selection with a nested one, whose input and list are gone."""
    folder = tmp_path_factory.mktemp("made")
    encoder = save_encoder(folder / "encoder")
    data, wanted = write_rows(folder / "rows.jsonl", 40), folder / "wanted.txt"
    wanted.write_text("")
    how = ["--budget", "6,12", "--k", 4, "--quality", "column:score", "--include", wanted, "--model", encoder, "--quiet"]
    done = divsel("select", data, "--out", folder / "out.jsonl", *how)
    assert done.exit_code == 0, done.output
    wanted.unlink()
    data.unlink()
    return folder


@pytest.fixture
def run(made, tmp_path):
    """The run folder of a copy that a test may damage."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy" / "out.jsonl.divsel"


def verified(run):
    return divsel("verify", run, "--json")


def test_verify_draws_the_same_rows_again(run):
    done = verified(run)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"verified": 12, "draws": 1, "weight_updates": 0}


def test_verify_finds_a_file_of_a_stage_that_was_changed_and_a_draw_that_comes_out_otherwise(run):
    [quality] = (run / "quality").glob("*/part-*.parquet")
    table = pq.read_table(quality)
    pq.write_table(table.set_column(1, "quality", pa.array(table["quality"].to_numpy()[::-1].copy())), quality)
    done = verified(run)
    assert done.exit_code == 1
    assert "has changed since it was committed" in done.stderr

    manifest = quality.parent / "_manifest.json"
    entry = json.loads(manifest.read_text())
    entry["files"][quality.name] = {"bytes": quality.stat().st_size, "sha256": file_digest(quality)}
    manifest.write_text(json.dumps(entry))
    done = verified(run)
    assert done.exit_code == 1
    assert "redrawn from the same artefacts" in done.stderr


def test_verify_finds_other_rows_in_the_selection(run):
    (run / "selection.parquet").unlink()
    pq.write_table(pa.table({"row_id": ["a" * 32]}), run / "selection.parquet")
    done = verified(run)
    assert done.exit_code == 1
    assert "its row ids do not match manifest.json" in done.stderr


@pytest.mark.parametrize(
    "name", ["out.jsonl", "out-6.jsonl", "out.jsonl.divsel/selection.jsonl", "out.jsonl.divsel/selection-6.jsonl"]
)
def test_verify_finds_a_row_whose_text_was_changed(run, name):
    file = run.parent / name
    lines = file.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[2])
    row["messages"][-1]["content"] += "!"
    file.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]), encoding="utf-8")
    done = verified(run)
    assert done.exit_code == 1
    assert f"{file}: row 3: its messages do not match its row_id" in done.stderr


@pytest.mark.parametrize("text", ["{", '{"config": {}}', "[]"])
def test_verify_refuses_what_is_no_manifest(run, text):
    (run / "manifest.json").write_text(text)
    done = verified(run)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "not a valid run manifest" in line


def test_verify_refuses_a_folder_that_is_no_run(tmp_path):
    done = divsel("verify", tmp_path)
    assert done.exit_code == 2
    assert "no finished run in this folder" in done.stderr
