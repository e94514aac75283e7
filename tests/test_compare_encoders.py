"""`divsel compare-encoders`: one pool, two encoders, side by side; wrong input is one line."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from divsel_ray.cli import app
from divsel_ray.compare_encoders import clusters_agree, parse_encoders
from divsel_ray.config.files import build_config
from divsel_ray.errors import InputError
from tests.e2e.jobs import write_rows
from tests.models.tiny import save_encoder, save_language_model


def compare(*arguments):
    return CliRunner().invoke(app, ["compare-encoders", *map(str, arguments)])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    data = write_rows(folder / "rows.jsonl", 120)
    settings = {"pool": {"data": str(data), "partition_bytes": 4096}, "cluster": {"k": 4, "max_iter": 10}, "budget": 12}
    settings["embed"] = {"model": str(save_encoder(folder / "bert")), "max_tokens": 64}
    save_language_model(folder / "lm")
    (folder / "job.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_two_encoders_share_the_pool_and_stand_side_by_side_once_and_for_all(cluster, job, tmp_path):
    encoders = ("--encoder", f"bert={job / 'bert'}", "--encoder", f"lm=causal_lm:{job / 'lm'}", "--out", tmp_path)
    done = compare(job / "job.yaml", *encoders)
    assert done.exit_code == 0, done.output
    named = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("bert", "lm", "random"))]
    assert named == ["bert", "lm", "random", "bert,", "bert,", "lm,"]
    record = json.loads((tmp_path / "compare-encoders.json").read_text())
    assert record["pool_rows"] == 120
    bert, lm, random = record["encoders"]
    assert (random["name"], random["dimension"]) == ("random", 16)
    assert (bert["name"], bert["dimension"], bert["k"], bert["rows"]) == ("bert", 32, 4, 12)
    assert lm["source"] == str(job / "lm")
    assert all(0 < one["clusters_covered"] <= 1 and one["vendi"] > 1 and one["stability"] is not None for one in (bert, lm))
    assert bert["held_out_loss"] is None
    assert [(pair["one"], pair["other"]) for pair in record["pairs"]] == [("bert", "lm"), ("bert", "random"), ("lm", "random")]
    assert all(0 <= pair["overlap"] < 1 for pair in record["pairs"])
    # 120 rows in 4 clusters: chance alone seldom agrees better.
    assert all(abs(pair["clusters_agree"]) < 0.15 for pair in record["pairs"][1:])
    assert len(list((tmp_path / "encoders").glob("*/pool/*"))) == 3
    assert len({path.resolve() for path in (tmp_path / "encoders").glob("*/pool/*")}) == 1
    again = compare(job / "job.yaml", *encoders, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == {**record, "result": str(tmp_path / "compare-encoders.json")}
    assert {line[0] for line in again.stderr.splitlines() if line[:2] in ("= ", "+ ")} == {"="}


def test_one_encoder_alone_is_refused(job, tmp_path):
    done = compare(job / "job.yaml", "-e", f"bert={job / 'bert'}", "--no-random", "--out", tmp_path)
    assert done.exit_code == 2
    assert "only one encoder; add another" in done.stderr


def test_the_same_encoder_twice_agrees_with_itself_and_own_vectors_are_an_encoder(cluster, job, tmp_path):
    own = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    np.save(tmp_path / "own.npy", own)
    names = (f"one={job / 'bert'}", f"two=model={job / 'bert'},batch_tokens=4096", f"own=given:{tmp_path / 'own.npy'}")
    options = [part for name in names for part in ("-e", name)]
    done = compare(job / "job.yaml", *options, "--out", tmp_path / "out", "--json", "--quiet", "--k", 3, "--no-random")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(one["name"], one["dimension"], one["k"]) for one in found["encoders"]] == [
        ("one", 32, 3),
        ("two", 32, 3),
        ("own", 8, 3),
    ]
    same, *others = found["pairs"]
    assert (same["one"], same["other"]) == ("one", "two")
    assert same["clusters_agree"] == pytest.approx(1, abs=0.05)
    assert same["overlap"] > 0.8
    assert all(pair["clusters_agree"] < 0.5 for pair in others)


def test_agreement_is_lined_up_by_row_id(tmp_path):
    def write(name, clusters):
        ids = sorted(clusters)
        pq.write_table(
            pa.table({"row_id": ids, "cluster": pa.array([clusters[one] for one in ids], pa.int32())}), tmp_path / name
        )
        return [str(tmp_path / name)]

    ids = [f"{at:032x}" for at in range(4)]
    one = write("one.parquet", dict(zip(ids, [0, 0, 1, 1], strict=True)))
    renamed = write("renamed.parquet", dict(zip(ids, [5, 5, 2, 2], strict=True)))
    crossed = write("crossed.parquet", dict(zip(ids, [0, 1, 0, 1], strict=True)))
    assert clusters_agree(one, renamed) == 1
    # Hubert and Arabie 1985: no pair together in both, 2/3 expected by chance, at most 2.
    assert clusters_agree(one, crossed) == pytest.approx((0 - 2 / 3) / (2 - 2 / 3))


def settings(**values):
    return build_config({"budget": 1, "pool": {"data": "rows.jsonl"}, **values}, "job")


def test_an_encoder_takes_the_place_of_the_jobs_own_and_tokens_are_counted_as_before():
    config = settings(embed={"encoder": "causal_lm", "pooling": "mean", "model": "lm", "max_tokens": 99})
    found = parse_encoders(["a=b/c", "v=vllm:package:x", "api=api.model=m,api.protocol=cohere,max_tokens=50"], config)
    embeds = [one.embed for one in found.values()]
    assert [(one.encoder, one.model, one.max_tokens) for one in embeds[:2]] == [("auto", "b/c", 99), ("vllm", "package:x", 99)]
    assert (embeds[2].api.protocol, embeds[2].api.model, embeds[2].max_tokens) == ("cohere", "m", 50)
    assert {one.pool.tokenizer for one in found.values()} == {"lm"}
    given = parse_encoders(["own=given:/runs/lr=0.1/vectors.npy", "tuned=causal_lm:/runs/lr=0.1/model"], config)
    assert [given["own"].embed.given, given["tuned"].embed.model] == ["/runs/lr=0.1/vectors.npy", "/runs/lr=0.1/model"]


@pytest.mark.parametrize(
    ("encoders", "said"),
    [
        (["a=x/y", "a=x/z"], "the name a is already in use"),
        (["random=x/y"], "the name random is already in use"),
        (["a=x/y", "minilm"], "expected NAME=REFERENCE"),
        (["a=x/y", "../b=x/z"], "expected NAME=REFERENCE"),
        (["a=x/y", "b=models=x"], "models: unknown key"),
    ],
)
def test_wrong_encoders_are_one_line(encoders, said):
    with pytest.raises(InputError, match=said):
        parse_encoders(encoders, settings())
