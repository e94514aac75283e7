"""Drawing rounds from files: exact totals, joins by row id, held-out rows kept apart."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import SelectConfig
from divsel_ray.errors import InputError
from divsel_ray.select.plan import DrawFiles, DrawPlan
from divsel_ray.select.registry import SAMPLERS
from divsel_ray.select.stage import draw_round

ROWS, K = 120, 4


@pytest.fixture
def files(tmp_path):
    """Clusters in two files, and the rest of what is known of the same rows in another order and split."""
    generator = np.random.default_rng(0)
    ids = np.array(sorted(generator.bytes(16).hex() for _ in range(ROWS)))
    clusters = pa.table({"row_id": ids, "cluster": np.arange(ROWS, dtype=np.int32) % K, "distance": np.zeros(ROWS, np.float32)})
    order = generator.permutation(ROWS)
    quality = pa.table({"row_id": ids[order], "quality": np.arange(ROWS, dtype=float)[order]})
    sources = np.where(np.arange(ROWS) < 20, "small.jsonl", "large.jsonl")
    pool = pa.table({"row_id": ids[order], "source": sources[order], "n_tokens": (10 + np.arange(ROWS) % 7)[order]})
    flat = pa.array(generator.normal(size=ROWS * 4).astype(np.float16))
    vectors = pa.table({"row_id": ids[order], "embedding": pa.FixedSizeListArray.from_arrays(flat, 4)})
    tables = {"clusters": (clusters, 50), "quality": (quality, 90), "pool": (pool, 33), "embeddings": (vectors, 60)}
    return DrawFiles(**{name: write(tmp_path / name, table, cut) for name, (table, cut) in tables.items()})


def write(folder, table, cut):
    folder.mkdir()
    for name, part in (("a", table.slice(0, cut)), ("b", table.slice(cut))):
        pq.write_table(part, folder / f"{name}.parquet")
    return [str(folder / "a.parquet"), str(folder / "b.parquet")]


def read(folder, name="selected"):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_quality_is_joined_by_row_id_and_not_by_position(cluster, files, tmp_path):
    plan = DrawPlan(SelectConfig(temperature=1e-3), 0, [8])
    facts = draw_round(files, K, plan, tmp_path)
    assert facts["drawn"] == [2, 2, 2, 2]
    assert sorted(row["quality"] for row in read(tmp_path)) == [112, 113, 114, 115, 116, 117, 118, 119]


def test_rounds_extend_one_another_to_exactly_the_budget(cluster, files, tmp_path):
    config, state, earlier = SelectConfig(), {}, set()
    for number, weights in enumerate(([0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = DrawPlan(config, 0, [10 * (number + 1)], held_out=5, reserved=30, weights=weights, **state)
        facts = draw_round(files, K, plan, folder)
        rows = read(folder)
        ids = {row["row_id"] for row in rows}
        assert len(ids) == len(rows) == 10 * (number + 1)
        assert earlier <= ids
        assert {row["row_id"] for row in rows if row["new"]} == ids - earlier
        state, earlier = {"drawn": facts["drawn"], "targets": facts["targets"]}, ids
    # Targets 10.5, 4.5, 4.5, 10.5 after drawing 8, 2, 2, 8: halves round up for the first two clusters.
    assert facts["drawn"] == [11, 5, 4, 10]


def test_held_out_rows_are_the_same_in_every_round_and_never_drawn(cluster, files, tmp_path):
    held_out = []
    for size in (10, 100):
        folder = tmp_path / str(size)
        folder.mkdir()
        draw_round(files, K, DrawPlan(SelectConfig(), 0, [size], held_out=7, reserved=100), folder)
        held_out.append({row["row_id"] for row in read(folder, "held_out")})
        assert not held_out[-1] & {row["row_id"] for row in read(folder)}
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 7


def test_a_budget_that_takes_the_whole_pool_leaves_nothing_held_out(cluster, files, tmp_path):
    facts = draw_round(files, K, DrawPlan(SelectConfig(), 0, [ROWS], held_out=7, reserved=ROWS), tmp_path)
    assert facts["rows"] == ROWS
    assert read(tmp_path, "held_out") == []
    assert all(row["weight"] == 1 for row in read(tmp_path))


def test_a_pool_smaller_than_the_budget_is_refused(cluster, files, tmp_path):
    with pytest.raises(InputError, match="budget 121 exceeds the pool's 120 rows"):
        draw_round(files, K, DrawPlan(SelectConfig(), 0, [121]), tmp_path)


def listed_out(files, tmp_path):
    ids = sorted(column(files, "source"))
    return SelectConfig(exclude=listed(tmp_path / "out.txt", ids[:50]))


def dropped(files, tmp_path):
    rows = pq.read_table(files.clusters[0])["row_id"].to_pylist()
    pq.write_table(pa.table({"row_id": rows, "quality": [None] * len(rows)}), files.quality[0])
    pq.write_table(pa.table({"row_id": pq.read_table(files.clusters[1])["row_id"], "quality": [1.0] * 70}), files.quality[1])
    return SelectConfig(missing="drop")


def removed(files, tmp_path):
    files.removed.append(files.clusters[0])
    return SelectConfig()


@pytest.mark.parametrize("leave_out", [listed_out, dropped, removed])
def test_a_budget_that_the_last_round_could_not_reach_is_refused_by_the_first(cluster, files, tmp_path, leave_out):
    config = leave_out(files, tmp_path)
    plan = DrawPlan(config, 0, [20], reserved=71)
    with pytest.raises(
        InputError, match=r"^budget 71 exceeds the 70 rows that may be drawn: .*; lower the budget, .*--allow-fewer.*$"
    ):
        draw_round(files, K, plan, tmp_path)
    assert draw_round(files, K, replace(plan, reserved=70), tmp_path)["rows"] == 20
    assert draw_round(files, K, replace(plan, allow_fewer=True), tmp_path)["rows"] == 20


def test_a_budget_of_tokens_is_held_against_the_tokens_that_may_be_drawn(cluster, files, tmp_path):
    config, tokens = listed_out(files, tmp_path), column(files, "n_tokens")
    able = sum(tokens[row_id] for row_id in sorted(tokens)[50:])
    plan = DrawPlan(config, 0, [100], "tokens", reserved=able)
    assert draw_round(files, K, plan, tmp_path)["tokens"] <= 100
    with pytest.raises(InputError, match=f"budget {able + 1:,} exceeds the {able:,} tokens that may be drawn"):
        draw_round(files, K, replace(plan, reserved=able + 1), tmp_path)


def test_rows_are_drawn_without_quality_too(cluster, files, tmp_path):
    draw_round(DrawFiles(files.clusters), K, DrawPlan(SelectConfig(), 0, [12]), tmp_path)
    assert [row["quality"] for row in read(tmp_path)] == [None] * 12


def draw(files, folder, budgets, memory=float("inf"), unit="rows", allow_fewer=False, **settings):
    """A draw by these settings: its facts and its rows by row id."""
    folder.mkdir(exist_ok=True)
    plan = DrawPlan(SelectConfig(**settings), 0, budgets, unit, allow_fewer)
    facts = draw_round(files, K, plan, folder, memory)
    return facts, {row["row_id"]: row for row in read(folder)}


def column(files, name):
    """One column of the pool by row id."""
    table = pa.concat_tables([pq.read_table(file) for file in files.pool])
    return dict(zip(table["row_id"].to_pylist(), table[name].to_pylist(), strict=True))


def listed(path, ids):
    path.write_text("".join(f"{row_id}\n" for row_id in ids))
    return str(path)


def test_every_row_says_why_it_was_taken(cluster, files, tmp_path):
    reasons = {}
    for sampler in ("kmq", "top", "facility"):
        _, rows = draw(files, tmp_path / sampler, [8], sampler=sampler)
        reasons[sampler] = sorted({row["why"] for row in rows.values()})
    assert reasons["kmq"] == [f"kmq: cluster {j} gives 2 of 30 rows" for j in range(K)]
    assert reasons["top"] == ["top: 8 of the pool's 120 rows"]
    assert reasons["facility"][0].startswith("facility: choice 1, gain ")


def test_quotas_give_exactly_their_rows_and_the_rest_comes_from_the_others(cluster, files, tmp_path):
    facts, rows = draw(files, tmp_path / "a", [10, 40], quotas={"small.jsonl": 8})
    source = column(files, "source")
    assert facts["budgets"] == [[10, 10], [40, 40]]
    assert sum(source[row_id] == "small.jsonl" for row_id in rows) == 8
    assert sum(source[row_id] == "small.jsonl" for row_id, row in rows.items() if row["budget"] == 10) == 2


QUARTERS = ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")


@pytest.fixture
def quarters(files, tmp_path):
    """The same rows, a quarter of them from each of four sources."""
    ids = sorted(column(files, "source"))
    table = pa.table({"row_id": ids, "source": [QUARTERS[at % 4] for at in range(ROWS)], "n_tokens": [10] * ROWS})
    return replace(files, pool=write(tmp_path / "quarters", table, 50))


@pytest.mark.parametrize(
    ("budgets", "quotas"),
    [
        ([10, 100], [25, 25, 25, 25]),
        ([11, 90], [30, 30, 30]),
        ([10, 90], [29, 30, 30]),
        ([1, 2, 3, 50, 80], [25, 30, 1]),
    ],
)
def test_every_nested_budget_has_exactly_its_rows_beside_quotas(cluster, quarters, tmp_path, budgets, quotas):
    quotas = dict(zip(QUARTERS, quotas, strict=False))
    facts, rows = draw(quarters, tmp_path / "a", budgets, quotas=quotas)
    assert facts["budgets"] == [[budget, budget] for budget in budgets]
    source = column(quarters, "source")
    for name, quota in quotas.items():
        assert sum(source[row_id] == name for row_id in rows) == quota


def test_the_order_of_quotas_changes_no_selection(cluster, quarters, tmp_path):
    quotas = dict.fromkeys(QUARTERS, 5)
    draws = [
        draw(quarters, tmp_path / name, [7, 20], quotas=some, sampler="facility")[1]
        for name, some in (("a", quotas), ("b", dict(reversed(quotas.items()))))
    ]
    assert draws[0] == draws[1]


def test_what_a_source_lacks_of_its_quota_comes_from_the_others_where_fewer_are_allowed(cluster, files, tmp_path):
    facts, rows = draw(files, tmp_path / "a", [10, 40], quotas={"small.jsonl": 30}, allow_fewer=True)
    source = column(files, "source")
    assert facts["budgets"] == [[10, 10], [40, 40]]
    assert sum(source[row_id] == "small.jsonl" for row_id in rows) == 20


def test_a_quota_that_cannot_be_met_is_refused_with_the_numbers(cluster, files, tmp_path):
    with pytest.raises(InputError, match=r"quota of small.jsonl 21 exceeds the pool's 20 rows"):
        draw(files, tmp_path / "a", [40], quotas={"small.jsonl": 21})
    with pytest.raises(InputError, match=r"no such source in the pool; its sources include large.jsonl, small.jsonl"):
        draw(files, tmp_path / "b", [40], quotas={"other.jsonl": 1})
    with pytest.raises(InputError, match="their sum exceeds the budget of 5"):
        draw(files, tmp_path / "c", [5], quotas={"small.jsonl": 6})


def test_included_rows_are_in_and_excluded_rows_are_not(cluster, files, tmp_path):
    ids = sorted(column(files, "source"))
    lists = {"include": listed(tmp_path / "in.txt", ids[:6]), "exclude": listed(tmp_path / "out.txt", [*ids[50:110], "f" * 32])}
    facts, rows = draw(files, tmp_path / "a", [30], **lists)
    assert len(rows) == 30
    assert set(ids[:6]) <= set(rows)
    assert not set(ids[50:110]) & set(rows)
    assert {rows[row_id]["why"] for row_id in ids[:6]} == {"named in select.include"}
    assert (facts["included"], facts["excluded"]) == (6, 60)


@pytest.mark.parametrize("sampler", ["kmq", "kcenter"])
def test_included_rows_count_against_a_budget_of_tokens(cluster, files, tmp_path, sampler):
    tokens = column(files, "n_tokens")
    ids = sorted(tokens)[:6]
    include = listed(tmp_path / "in.txt", ids)
    facts, rows = draw(files, tmp_path / "a", [300], unit="tokens", include=include, sampler=sampler)
    assert set(ids) <= set(rows)
    assert facts["tokens"] == sum(tokens[row_id] for row_id in rows)
    # No row has more than 16 tokens: less room than that is left.
    assert 300 - 16 < facts["tokens"] <= 300


def test_included_rows_are_new_in_the_first_round_only(cluster, files, tmp_path):
    ids = sorted(column(files, "source"))[:6]
    config, state, new = SelectConfig(include=listed(tmp_path / "in.txt", ids)), {}, []
    for size in (10, 20):
        folder = tmp_path / str(size)
        folder.mkdir()
        facts = draw_round(files, K, DrawPlan(config, 0, [size], reserved=20, **state), folder)
        new.append({row["row_id"] for row in read(folder) if row["new"]})
        state = {"drawn": facts["drawn"], "targets": facts["targets"]}
    assert [len(rows) for rows in new] == [10, 10]
    assert set(ids) <= new[0]
    assert not new[0] & new[1]


def test_lists_that_contradict_each_other_or_the_budget_are_refused(cluster, files, tmp_path):
    ids = sorted(column(files, "source"))
    lists = {"include": listed(tmp_path / "in.txt", ids[:6]), "exclude": listed(tmp_path / "out.txt", ids[5:8])}
    with pytest.raises(InputError, match=f"1 row ids are in both, the first is {ids[5]}"):
        draw(files, tmp_path / "a", [30], **lists)
    with pytest.raises(InputError, match=r"budget 4 is less than the 6 rows in select.include"):
        draw(files, tmp_path / "b", [4], include=lists["include"])


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_order_of_rows_in_files_changes_no_selection(cluster, files, tmp_path, sampler):
    order = np.random.default_rng(9).permutation(ROWS)
    table = pa.concat_tables([pq.read_table(file) for file in files.clusters]).take(pa.array(order))
    shuffled = replace(files, clusters=write(tmp_path / "shuffled", table, 70))
    draws = [draw(some, tmp_path / name, [15], sampler=sampler)[1] for name, some in (("a", files), ("b", shuffled))]
    assert draws[0] == draws[1]


def test_a_budget_of_tokens_is_kept(cluster, files, tmp_path):
    facts, rows = draw(files, tmp_path / "a", [300], unit="tokens")
    tokens = column(files, "n_tokens")
    assert facts["tokens"] == sum(tokens[row_id] for row_id in rows)
    assert 290 < facts["tokens"] <= 300


def test_fewer_rows_are_taken_where_that_is_allowed(cluster, files, tmp_path):
    facts, rows = draw(files, tmp_path / "a", [50, 500], allow_fewer=True)
    assert len(rows) == ROWS
    assert facts["budgets"] == [[50, 50], [500, ROWS]]


def test_removed_rows_and_rows_without_quality_stay_out(cluster, files, tmp_path):
    ids = sorted(column(files, "source"))
    pq.write_table(pa.table({"row_id": ids[:30], "of": ids[30:60]}), tmp_path / "removed.parquet")
    pq.write_table(pa.table({"row_id": ids[:90], "quality": [1.0] * 80 + [None] * 10}), tmp_path / "scores.parquet")
    fewer = DrawFiles(files.clusters, [str(tmp_path / "scores.parquet")], removed=[str(tmp_path / "removed.parquet")])
    facts, rows = draw(fewer, tmp_path / "a", [50], missing="drop")
    assert set(rows) == set(ids[30:80])
    assert facts["missing_quality"] == 40


def test_a_sampler_that_needs_more_memory_than_there_is_says_what_to_do(cluster, files, tmp_path):
    with pytest.raises(
        InputError, match=r"select.sampler facility: 120 rows in 4 dimensions need about .* GiB of memory, .*reduce the pool"
    ):
        draw(files, tmp_path / "a", [8], memory=1000, sampler="facility")
