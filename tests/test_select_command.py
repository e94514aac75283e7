"""`divsel select` with all that people bring to it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from divsel_ray.cli import app
from divsel_ray.config.files import build_config
from divsel_ray.pipeline import plan_job
from tests.e2e.jobs import write_rows
from tests.json_lines import read_lines
from tests.models.tiny import save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


def divsel(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def select(data, out, encoder, *arguments):
    done = divsel("select", data, "--out", out, "--model", encoder, "--k", 4, "--quiet", *arguments)
    assert done.exit_code == 0, done.output
    return read_lines(out)


def ids(rows):
    return {row["row_id"] for row in rows}


def test_several_budgets_are_nested_files(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 60)
    rows = select(data, tmp_path / "out.jsonl", encoder, "--budget", "30,5,12")
    small, middle = (read_lines(tmp_path / f"out-{budget}.jsonl") for budget in (5, 12))
    assert (len(small), len(middle), len(rows)) == (5, 12, 30)
    assert "Compared with 20 random subsets" in (tmp_path / "out.jsonl.divsel" / "report.html").read_text(encoding="utf-8")
    assert ids(small) < ids(middle) < ids(rows)
    assert sorted({row["budget"] for row in rows}) == [5, 12, 30]


def test_a_selection_is_topped_up_and_another_one_kept_out(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 60)
    first = select(data, tmp_path / "first.jsonl", encoder, "--budget", 10)
    topped = select(data, tmp_path / "more.jsonl", encoder, "--budget", 25, "--seed", 1, "--include", tmp_path / "first.jsonl")
    assert ids(first) < ids(topped)
    others = select(data, tmp_path / "others.jsonl", encoder, "--budget", 35, "--exclude", tmp_path / "more.jsonl")
    assert not ids(others) & ids(topped)


def test_the_list_that_is_kept_out_is_not_mistaken_for_the_one_that_is_kept_in(cluster, encoder, tmp_path):
    data, out = write_rows(tmp_path / "rows.jsonl", 40), tmp_path / "out.jsonl"
    listed = ids(select(data, tmp_path / "first.jsonl", encoder, "--budget", 8))
    assert listed < ids(select(data, out, encoder, "--budget", 20, "--include", tmp_path / "first.jsonl"))
    assert not listed & ids(select(data, out, encoder, "--budget", 20, "--exclude", tmp_path / "first.jsonl"))


def test_a_list_of_another_kind_is_kept_with_its_draw(cluster, encoder, tmp_path):
    data, out = write_rows(tmp_path / "rows.jsonl", 40), tmp_path / "out.jsonl"
    first = ids(select(data, tmp_path / "first.jsonl", encoder, "--budget", 8))
    for name in ("list.txt", "list.ids"):
        (tmp_path / name).write_text("\n".join(sorted(first)))
        select(data, out, encoder, "--budget", 20, "--exclude", tmp_path / name)
        done = divsel("verify", tmp_path / "out.jsonl.divsel")
        assert done.exit_code == 0, done.output


def test_a_short_selection_is_found_again_only_where_fewer_rows_are_allowed(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    select(data, tmp_path / "first.jsonl", encoder, "--budget", 30)
    arguments = ["--budget", 20, "--exclude", tmp_path / "first.jsonl"]
    assert len(select(data, tmp_path / "out.jsonl", encoder, *arguments, "--allow-fewer")) == 10
    done = divsel("select", data, "--out", tmp_path / "out.jsonl", "--model", encoder, "--k", 4, "--quiet", *arguments)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "budget 20 exceeds the 10 rows that may be drawn" in line
    assert "--allow-fewer" in line


def draw_config(data, work, encoder, **more):
    """The settings in the identity of a selection's draw."""
    job = {"budget": 5, "pool": {"data": str(data)}, "embed": {"model": encoder}, **more}
    [draw] = [stage for stage, _ in plan_job(build_config(job, "test"), work) if stage.name == "round-1/draw"]
    return draw.identity["config"]


def test_a_draw_without_lists_that_is_to_be_whole_is_named_by_what_it_always_was(encoder, tmp_path):
    data, listed = write_rows(tmp_path / "rows.jsonl", 10), tmp_path / "list.txt"
    listed.write_text("")
    plain = draw_config(data, tmp_path / "run", encoder)
    assert not {"include", "exclude", "allow_fewer"} & set(plain)
    given = {"select": {"include": str(listed), "exclude": str(listed)}, "allow_fewer": True}
    assert set(draw_config(data, tmp_path / "run", encoder, **given)) - set(plain) == {"include", "exclude", "allow_fewer"}


def test_quotas_name_sources(cluster, encoder, tmp_path):
    (tmp_path / "data").mkdir()
    lines = write_rows(tmp_path / "rows.jsonl", 60).read_text().splitlines()
    (tmp_path / "data" / "a.jsonl").write_text("\n".join(lines[:20]) + "\n")
    (tmp_path / "data" / "b.jsonl").write_text("\n".join(lines[20:]) + "\n")
    rows = select(tmp_path / "data", tmp_path / "out.jsonl", encoder, "--budget", 20, "--quota", "a.jsonl=15")
    assert sum(row["source"] == "a.jsonl" for row in rows) == 15


def test_own_vectors_and_scores_are_used_by_place_or_by_row_id(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    axes = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    np.save(tmp_path / "vectors.npy", 3 * axes)
    np.save(tmp_path / "scores.npy", np.arange(40.0))
    own = ["--embeddings", tmp_path / "vectors.npy", "--quality", f"given:{tmp_path / 'scores.npy'}", "--sampler", "kmq"]
    rows = select(data, tmp_path / "out.jsonl", encoder, "--budget", 8, "--set", "select.temperature=0.001", *own)
    # Four clusters, one for each axis; the two best of each are the last eight rows.
    assert sorted(row["quality"] for row in rows) == list(range(32, 40))
    assert [sum(row["cluster"] == j for row in rows) for j in range(4)] == [2, 2, 2, 2]
    [embedded] = (tmp_path / "out.jsonl.divsel" / "embed").iterdir()
    again = select(
        data,
        tmp_path / "again.jsonl",
        encoder,
        "--budget",
        8,
        "--embeddings",
        embedded,
        *own[2:],
        "--set",
        "select.temperature=0.001",
    )
    assert ids(again) == ids(rows)


def test_vectors_that_do_not_fit_the_input_are_one_line_and_exit_2(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    np.save(tmp_path / "vectors.npy", np.ones((39, 4)))
    done = divsel(
        "select", data, "--budget", 5, "--out", tmp_path / "o.jsonl", "--embeddings", tmp_path / "vectors.npy", "--quiet"
    )
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "39 rows for an input of 40 records" in line


def scored_files(folder):
    """What `--quality given:` may be wrong in, by the line that says so."""
    for name, values in (("short", np.ones(39)), ("long", np.ones(41)), ("vectors", np.ones((40, 2)))):
        np.save(folder / f"{name}.npy", values)
    np.save(folder / "words.npy", np.array(["good"] * 40))
    pq.write_table(pa.table({"row_id": ["a" * 32], "score": [1.0]}), folder / "unnamed.parquet")
    pq.write_table(pa.table({"row_id": ["a" * 32], "quality": ["good"]}), folder / "words.parquet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short.npy", "39 rows for an input of 40 records"),
        ("long.npy", "41 rows for an input of 40 records"),
        ("vectors.npy", "contains vectors; expected a number for each row"),
        ("words.npy", "expected a number for each row"),
        ("unnamed.parquet", "no column quality; expected row_id and quality"),
        ("words.parquet", "expected a number for each row"),
    ],
)
def test_scores_that_do_not_fit_the_input_are_one_line_and_exit_2(cluster, encoder, tmp_path, name, message):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    scored_files(tmp_path)
    scores = ["--quality", f"given:{tmp_path / name}"]
    done = divsel("select", data, "--budget", 5, "--out", tmp_path / "o.jsonl", "--model", encoder, "--quiet", *scores)
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert "quality.source: " in line
    assert message in line


def test_an_array_of_scores_is_refused_for_two_input_files_and_parquet_is_not(cluster, encoder, tmp_path):
    (tmp_path / "data").mkdir()
    for seed, name in enumerate("ab"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", 20, seed)
    np.save(tmp_path / "scores.npy", np.arange(20.0))
    arguments = ["select", tmp_path / "data", "--budget", 5, "--out", tmp_path / "o.jsonl", "--model", encoder, "--quiet"]
    done = divsel(*arguments, "--quality", f"given:{tmp_path / 'scores.npy'}")
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "quality.source: " in line
    assert "works with one input file only; there are 2" in line
    every = ids(select(tmp_path / "data", tmp_path / "all.jsonl", encoder, "--budget", 40))
    pq.write_table(pa.table({"row_id": sorted(every), "quality": np.arange(40.0)}), tmp_path / "scores.parquet")
    done = divsel(*arguments, "--quality", f"given:{tmp_path / 'scores.parquet'}")
    assert done.exit_code == 0, done.output


def test_cleaning_counts_what_it_removes_and_the_selection_has_none_of_it(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 40)
    benchmark = "what is the capital of the country whose flag has a maple leaf on white and red"
    with data.open("a") as stream:
        stream.write(json.dumps({"prompt": f"Answer this: {benchmark}", "completion": "Ottawa"}) + "\n")
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": benchmark, "answer": "Ottawa"}) + "\n")
    settings = ["--set", f"clean.benchmarks={tmp_path / 'bench.jsonl'}", "--set", "clean.semantic_duplicates=0.999"]
    rows = select(data, tmp_path / "out.jsonl", encoder, "--budget", 40, "--allow-fewer", *settings)
    assert not any("maple leaf" in row["messages"][0]["content"] for row in rows)
    [removed] = (tmp_path / "out.jsonl.divsel" / "clean").glob("*/removed.jsonl")
    assert [row["step"] for row in read_lines(removed)] == ["benchmark"]
    [semantic] = (tmp_path / "out.jsonl.divsel" / "semantic").glob("*/_manifest.json")
    assert len(rows) == 40 - json.loads(semantic.read_text())["facts"]["removed"]


def test_a_selection_is_exported_for_a_trainer(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 30)
    select(data, tmp_path / "out.jsonl", encoder, "--budget", 5)
    for source in (tmp_path / "out.jsonl", tmp_path / "out.jsonl.divsel"):
        done = divsel("export", source, "--to", "llama-factory", "--out", tmp_path / "data", "--name", "picked", "--json")
        assert done.exit_code == 0, done.output
        assert len(read_lines(tmp_path / "data" / "picked.jsonl")) == 5
        assert json.loads((tmp_path / "data" / "dataset_info.json").read_text())["picked"]["formatting"] == "sharegpt"
    done = divsel("export", tmp_path / "out.jsonl", "--to", "keras", "--out", tmp_path / "data")
    assert done.exit_code == 2
    assert "--to 'keras': expected one of llama-factory, axolotl, trl" in done.stderr


def test_a_selection_is_never_selected_from_by_the_command_that_wrote_it(cluster, encoder, tmp_path):
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.jsonl", 30)
    out = tmp_path / "data" / "out.jsonl"
    select(tmp_path / "data", out, encoder, "--budget", 5)
    done = divsel("select", tmp_path / "data", "--out", out, "--budget", 6, "--model", encoder, "--quiet")
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "out.jsonl: is one of the input files" in line
    out.unlink()
    # The folder with the stages is no input either.
    assert len(select(tmp_path / "data", out, encoder, "--budget", 30)) == 30


def test_samplers_are_listed_with_what_they_cost():
    listed = json.loads(divsel("samplers", "--json").stdout)
    assert {"kmq", "facility", "mig"} <= set(listed)
    # Vectors alone are 0.7 GiB.
    assert listed["kmq"]["gib"] < 0.5
    assert 0.7 < listed["kcenter"]["gib"] < listed["facility"]["gib"]
    assert "neighbour graph" in divsel("samplers").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "ten"], "--budget 'ten': expected a number of rows"),
        (["--budget", "5", "--quota", "a=b"], "--quota 'a=b': expected SOURCE=N"),
        (["--budget", "5", "--sampler", "top"], "ranks rows by quality, but quality.source is none"),
        (["--budget", "5", "--set", "select.allocation=given"], "needs `weights`"),
        (["--budget", "5", "--include", "gone.txt"], "select.include: gone.txt: no such file"),
        (["--budget", "5", "--embeddings", "gone.npy"], "embed.given: gone.npy: no such file"),
        (["--budget", "5", "--quality", "given:gone.npy"], "quality.source: gone.npy: no such file"),
        (
            ["--budget", "5", "--quota", "nowhere=2"],
            "select.quotas.nowhere: no such source in the pool; its sources include rows.jsonl",
        ),
        (["--budget", "5", "--k", "31"], "k 31 exceeds the pool's 30 rows; lower cluster.k"),
        (["--budget", "2", "--unit", "tokens"], "budget 2 tokens: no row is that short; the shortest has"),
        (["--budget", "5", "--set", "clean.banana=1"], "clean.banana: unknown key"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_2(cluster, encoder, tmp_path, arguments, message):
    data = write_rows(tmp_path / "rows.jsonl", 30)
    done = divsel("select", data, "--out", tmp_path / "o.jsonl", "--model", encoder, "--quiet", *arguments)
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert message in line
    # Whatever can be known before is not found out after embedding.
    assert not (tmp_path / "o.jsonl.divsel" / "embed").exists() or "tokens" in message


@pytest.mark.parametrize("option", [["--out", "folder.jsonl"], ["--out", "o.jsonl", "--budget", "3,5"]])
def test_a_folder_is_never_replaced_by_a_selection(cluster, encoder, tmp_path, option):
    for name in ("folder.jsonl", "o-3.jsonl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    data = write_rows(tmp_path / "rows.jsonl", 30)
    target = ["--out", tmp_path / option[1], *(option[2:] or ["--budget", "5"])]
    done = divsel("select", data, *target, "--model", encoder, "--quiet")
    assert done.exit_code == 2
    assert "is a folder; name a file to write" in done.stderr
    assert (tmp_path / "folder.jsonl" / "precious").exists()
    assert (tmp_path / "o-3.jsonl" / "precious").exists()


def test_a_project_folder_is_not_taken_for_a_run_folder(cluster, encoder, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    data = write_rows(tmp_path / "rows.jsonl", 30)
    work = ["--work", tmp_path / "project", "--out", tmp_path / "o.jsonl"]
    done = divsel("select", data, "--budget", 5, *work, "--model", encoder, "--quiet")
    assert done.exit_code == 2
    assert "contains a README.md that is not from a run and would be overwritten" in done.stderr
    assert (tmp_path / "project" / "README.md").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_one_line(cluster, encoder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 30)
    (tmp_path / "file").touch()
    done = divsel("select", data, "--budget", 5, "--out", tmp_path / "file" / "o.jsonl", "--model", encoder, "--quiet")
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert "cannot be used as a run folder (Not a directory)" in line
