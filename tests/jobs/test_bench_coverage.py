from __future__ import annotations

import gzip
import json
import sys
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import bench_coverage
import bench_coverage_cache as cache
import bench_coverage_pool as pools
from bench_coverage import FIXED, WITHOUT_CLUSTERS, Drawn, draw_pool, figures, run_pool
from bench_coverage_pool import UNLABELLED, Pool, read_labelled, sample, skewed_sizes, synthetic_pool, thinned

from divsel_ray.config import SelectConfig
from divsel_ray.data.conversation import row_id
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster
from divsel_ray.select.draw import Demand, draw
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.sampler import Candidates

NONE = np.empty(0, np.int64)


def pool_of(task: list[int], budgets: tuple[int, ...] = (1,)) -> Pool:
    n = len(task)
    ids = np.array([f"{number:032x}" for number in range(n)], "S32")
    return Pool("small", ids, np.eye(n, dtype=np.float16), np.zeros(n), np.array(task), budgets)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def row(task: str, prompt: str, completion: str = "yes") -> dict[str, Any]:
    return {"task": task, "prompt": prompt, "completion": completion}


def test_smoke_covers_three_pools_with_every_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_coverage.main(["--smoke", "--json", str(tmp_path / "figures.json")]) == 0
    even, skewed, mixed = json.loads((tmp_path / "figures.json").read_text())["pools"]
    for entry in (even, skewed, mixed):
        assert [sampler["sampler"] for sampler in entry["samplers"]] == list(bench_coverage.NAMES)
        assert entry["samplers"][0]["sampler"] == "random"
        for sampler in entry["samplers"]:
            assert [share["budget"] for share in sampler["covered"]] == entry["budgets"]
            shares = [share["mean"] for share in sampler["covered"]]
            assert 0 < shares[0] <= shares[-1] <= 1, "budgets are nested"
            assert sampler["draws"] == (1 if sampler["sampler"] in FIXED else 3)
    assert (even["rows"], even["tasks"]) == (960, 24)
    assert skewed["rows"] < even["rows"]
    assert mixed["rows"] == skewed["rows"] + 200
    assert "expected of random" in capsys.readouterr().out


# Coverage


def test_a_task_is_covered_by_one_row_and_rows_of_no_task_cover_nothing() -> None:
    pool = pool_of([0, 0, 1, 2, 2, UNLABELLED])
    assert pool.covered(np.array([0, 1])) == pytest.approx(1 / 3)
    assert pool.covered(np.array([1, 2, 5])) == pytest.approx(2 / 3)
    assert pool.covered(np.array([5])) == 0
    assert pool.task_sizes.tolist() == [2, 1, 2]


@pytest.mark.parametrize("budget", [1, 3, 5, 6])
def test_random_covers_what_counting_all_draws_says(budget: int) -> None:
    pool = pool_of([0, 0, 0, 2, 2, UNLABELLED])
    missed = [comb(6 - size, budget) / comb(6, budget) for size in (3, 2)]
    assert pool.expected_of_random(budget) == pytest.approx(1 - sum(missed) / 2)


def test_the_random_sampler_scatters_about_what_is_expected_of_random() -> None:
    whole, _ = synthetic_pool(tasks=20, rows=10, others=100)
    pool = whole.take(np.arange(len(whole)), "whole", (30,))
    clusters = (np.zeros(300, np.int32), np.zeros(300, np.float32), 1)
    shares = [draw_pool(pool, "random", clusters, seed).covered[0] for seed in range(100)]
    assert np.mean(shares) == pytest.approx(pool.expected_of_random(30), abs=0.03)


def test_shares_are_of_nested_selections_and_are_taken_from_the_draw_of_the_product() -> None:
    whole, _ = synthetic_pool(tasks=12, rows=10, others=0)
    pool = whole.take(np.arange(len(whole)), "whole", (6, 30))
    cluster = (np.arange(120) % 4).astype(np.int32)
    drawn = draw_pool(pool, "kmq", (cluster, np.zeros(120, np.float32), 4), seed=1)
    for budget, share in zip(pool.budgets, drawn.covered, strict=True):
        alone = draw(Candidates(pool.row_ids, cluster, pool.quality, 4), NONE, Demand([budget]), SelectConfig(sampler="kmq"), 1)
        assert share == len(set(pool.task[alone.index].tolist())) / 12


def test_samplers_drawn_once_look_at_neither_seed_nor_clusters() -> None:
    whole, _ = synthetic_pool(tasks=12, rows=10, others=30)
    n, generator = len(whole), np.random.default_rng(0)

    def rows(name: str, seed: int) -> list[int]:
        cluster, distance = generator.integers(0, 5, n), generator.random(n, np.float32)
        candidates = Candidates(whole.row_ids, cluster, whole.quality, 5, distance, whole.vectors)
        return draw(candidates, NONE, Demand([25]), SelectConfig(sampler=name), seed).index.tolist()

    for name in SAMPLERS:
        assert (rows(name, 0) == rows(name, 1)) == (name in FIXED), name
        assert name not in WITHOUT_CLUSTERS or rows(name, 0) == rows(name, 0), name


def test_repeated_draws_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int, int]] = []

    def look(pool: Pool, name: str, clusters: tuple[Any, Any, int], seed: int) -> Drawn:
        made.append((name, clusters[2], seed))
        return Drawn([0.5], 1.0, 0.5, 0.1)

    monkeypatch.setattr(bench_coverage, "draw_pool", look)
    monkeypatch.setattr(bench_coverage, "cluster_rows", lambda vectors, k, seed: (NONE, NONE))
    entries = list(run_pool(pool_of([0, 1]), ["kmq", "top", "random"], (4, 8), (0, 1)))
    assert sorted(made) == sorted(
        [("kmq", k, seed) for k in (4, 8) for seed in (0, 1)] + [("top", 4, 0), ("random", 4, 0), ("random", 4, 1)]
    )
    assert [(entry["sampler"], entry["k"], entry["draws"]) for entry in entries] == [
        ("random", None, 2),
        ("kmq", 4, 2),
        ("kmq", 8, 2),
        ("top", None, 1),
    ]


def test_figures_are_over_the_draws() -> None:
    draws = [Drawn([0.2, 0.6], 3.0, 0.5, 1.0), Drawn([0.4, 0.6], 5.0, 0.7, 3.0)]
    entry = figures("kmq", 4, (10, 20), draws)
    first, second = entry["covered"]
    assert first == {"budget": 10, "mean": pytest.approx(0.3), "sd": pytest.approx(0.02**0.5), "low": 0.2, "high": 0.4}
    assert (second["mean"], second["sd"]) == (0.6, 0)
    assert (entry["vendi"], entry["nearest"], entry["seconds"]) == (4, pytest.approx(0.6), 2)
    assert figures("top", None, (10, 20), draws[:1])["covered"][0]["sd"] is None


# Pools


def test_labelled_rows_have_the_ids_of_the_product_and_equal_rows_count_once(tmp_path: Path) -> None:
    rows = [row("b", "Q1"), row("a", "Q2"), row("a", "Q3", " "), row("a", "Q1"), row("b", "Q4")]
    labelled = read_labelled(write_rows(tmp_path / "rows.jsonl.gz", rows))
    assert (labelled.read, labelled.bad, labelled.tasks) == (5, 1, ["a", "b"])
    assert (labelled.row_ids[1:] > labelled.row_ids[:-1]).all()
    found = {}
    for one, position, task in zip(labelled.row_ids.tolist(), labelled.position, labelled.task, strict=True):
        found[int(position)] = (one.decode(), labelled.tasks[task])

    def expected(at: int) -> tuple[str, str]:
        messages = [{"role": "user", "content": rows[at]["prompt"]}, {"role": "assistant", "content": rows[at]["completion"]}]
        return row_id(messages), rows[at]["task"]

    assert found == {at: expected(at) for at in (0, 1, 4)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("a", "Q"), {"prompt": "Q", "completion": "yes"}], "line 2: expected an object with task"),
        ([row("a", "")], "none of its 1 rows has a prompt"),
    ],
)
def test_rows_without_label_or_text_are_refused(rows: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_labelled(write_rows(tmp_path / "rows.jsonl.gz", rows))


def test_sizes_fall_with_the_rank_and_stop_at_four() -> None:
    sizes = skewed_sizes(1_000)
    assert sizes[:4].tolist() == [200, 132, 103, 87]
    assert sizes[-1] == 4
    assert 4_300 < skewed_sizes(283).sum() < 4_500


def test_thinning_takes_each_tasks_share_and_depends_on_no_order_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LARGEST", 8)
    task = [0] * 10 + [1] * 10 + [2] * 2 + [UNLABELLED] * 3
    pool, names = pool_of(task), ["x", "y", "z"]
    kept = thinned(pool, names)
    ranked = sorted(range(3), key=lambda one: pools.digest(names[one]))
    wanted = {one: min(int(size), task.count(one)) for one, size in zip(ranked, skewed_sizes(3), strict=True)}
    assert {one: int((pool.task[kept] == one).sum()) for one in range(3)} == wanted
    assert not kept[-3:].any()
    renamed = Pool("renamed", pool.row_ids, pool.vectors, pool.quality, np.array([2, 0, 1, -1])[pool.task], ())
    assert (thinned(renamed, ["y", "z", "x"]) == kept).all()


def test_a_sample_is_of_the_rows_under_the_mask() -> None:
    pool = pool_of([0] * 20 + [UNLABELLED] * 20)
    mask = pool.task == UNLABELLED
    assert sample(pool, mask, 5).sum() == 5
    assert not (sample(pool, mask, 5) & ~mask).any()
    assert (sample(pool, mask, 99) == mask).all()


# Cache


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    labelled = [row("t1", "Q1"), row("t2", "Q2"), row("t1", "Q3"), row("t2", "Q4", "")]
    maths = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(3)]
    chats = [{"prompt": f"Chat {number}", "completion": "Hello."} for number in range(4)]
    content = {"labelled": labelled, "maths": maths, "chats": chats}
    return {name: write_rows(tmp_path / f"{name}.jsonl.gz", rows) for name, rows in content.items()}


def fake_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that take no time; returns the list to which each writes what it was asked for."""
    asked: list[str] = []

    def write(pool_files: list[str], folder: Path, name: str, values: Any) -> dict[str, Any]:
        asked.append(name)
        for file in pool_files:
            table = pq.read_table(file, columns=["row_id"])
            pq.write_table(table.append_column(name, values(table.num_rows)), folder / Path(file).name)
        return {"rows": sum(pq.read_metadata(file).num_rows for file in pool_files)}

    def vectors(rows: int) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.tile([0, 1], rows).astype(np.float16)), 2)

    monkeypatch.setattr(cache, "build_reward", lambda *_: asked.append("reward") or {})
    monkeypatch.setattr(cache, "embed_pool", lambda found, _, folder, *__: write(found, folder, "embedding", vectors))
    monkeypatch.setattr(
        cache, "score_pool", lambda found, _, folder, *__: write(found, folder, "quality", lambda rows: pa.array(np.ones(rows)))
    )
    return asked


def test_pools_are_made_of_the_files_and_the_cache_is_made_once(
    cluster: Cluster, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_models(monkeypatch)
    np.save(tmp_path / "vectors.npy", np.tile(np.array([1, 0], np.float16), (4, 1)))
    options = bench_coverage.parse(
        f"--pool {files['labelled']} --embeddings {tmp_path / 'vectors.npy'} --one-task {files['maths']} "
        f"--unlabelled {files['chats']} --cache {tmp_path / 'cache'}".split()
    )
    even, skewed, mixed = bench_coverage.real_pools(options)
    assert asked == ["reward", "embedding", "quality"]
    assert [len(pool) for pool in (even, skewed, mixed)] == [3, 3, 10]
    assert sorted(even.task.tolist()) == [0, 0, 1]
    assert sorted(mixed.task.tolist()) == [-1] * 4 + [0, 0, 1] + [2] * 3
    assert (mixed.quality == 1).all()
    own = np.isin(mixed.task, [0, 1])
    assert mixed.vectors[own].tolist() == [[1, 0]] * 3, "the vectors that were given"
    assert mixed.vectors[~own].tolist() == [[0, 1]] * 7
    list(bench_coverage.real_pools(options))
    assert len(asked) == 3, "nothing is computed again"
    with pytest.raises(InputError, match=r"was made of chats\.jsonl\.gz, labelled\.jsonl\.gz, maths\.jsonl\.gz, not of"):
        cache.make_cache(tmp_path / "cache", str(files["labelled"]), [str(files["labelled"])], Silent())


def test_without_a_cache_samplers_that_read_quality_are_left_out(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "vectors.npy", np.tile(np.array([1, 0], np.float16), (4, 1)))
    monkeypatch.setattr(bench_coverage, "EVEN", (1, 2))
    arguments = f"--pool {files['labelled']} --embeddings {tmp_path / 'vectors.npy'} --pools even --k 1".split()
    assert bench_coverage.main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    (entry,) = json.loads((tmp_path / "figures.json").read_text())["pools"]
    assert [one["sampler"] for one in entry["samplers"]] == [
        name for name in bench_coverage.NAMES if "quality" not in SAMPLERS[name].needs
    ]


def test_vectors_for_another_number_of_rows_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", np.eye(5))
    options = bench_coverage.parse(["--pool", str(files["labelled"]), "--embeddings", str(tmp_path / "vectors.npy")])
    with pytest.raises(InputError, match="5 vectors for 4 rows"):
        next(bench_coverage.real_pools(options))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected --pool and --embeddings, or --smoke"),
        (["--smoke", "--samplers", "kmqq"], "--samplers kmqq: expected some of random,kmq,"),
        (["--smoke", "--pools", "odd"], "--pools odd: expected some of even,skewed,mixed"),
        (["--smoke", "--unlabelled", "x.jsonl"], "need a --cache"),
        (["--smoke", "--k", "0"], "expected integers of at least 1"),
        (["--pool", "missing.jsonl", "--embeddings", "missing.npy"], "missing.jsonl"),
    ],
)
def test_wrong_input_ends_with_one_line_and_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_coverage.main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.splitlines()[-1].startswith("bench_coverage: ")
