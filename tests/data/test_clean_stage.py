from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.config import CleanConfig
from divsel_ray.data import clean_stage
from divsel_ray.data.clean_stage import build_clean
from divsel_ray.data.conversation import row_id
from divsel_ray.data.near_duplicates import jaccard, shingle_set
from divsel_ray.data.words import WordHasher, join_words
from divsel_ray.errors import InputError
from divsel_ray.progress import Silent
from divsel_ray.resources import Cluster

WORDS = [f"word{i}" for i in range(400)]


def conversation(prompt, completion="yes", system=None):
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def pool_row(messages, tokens=50, source="a.jsonl"):
    texts = [message["content"] for message in messages]
    return {
        "row_id": row_id(messages),
        "messages": messages,
        "prompt": "\n\n".join(texts[:-1]),
        "completion": texts[-1],
        "source": source,
        "n_tokens": tokens,
        "extra": len(texts),
    }


def write_pool(folder: Path, rows, parts=3) -> list[str]:
    """Equal ranges of ids, as the pool stage cuts them."""
    folder.mkdir(parents=True)
    rows = sorted(rows, key=lambda row: row["row_id"])
    schema = pa.Table.from_pylist(rows).schema
    files = []
    for part in range(parts):
        mine = [row for row in rows if int(row["row_id"][:8], 16) * parts >> 32 == part]
        files.append(str(folder / f"part-{part:05d}.parquet"))
        pq.write_table(pa.Table.from_pylist(mine, schema=schema), files[-1])
    return files


def rows_of(folder: Path):
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def removed_of(folder: Path):
    return [json.loads(line) for line in (folder / "removed.jsonl").open(encoding="utf-8")]


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """Clean rows without Ray; returns facts, rows left and rows removed."""
    monkeypatch.setattr(clean_stage, "run_tasks", lambda function, calls, *_: [function(*call) for call in calls])

    def build(rows, name="clean", parts=3, **settings):
        files = write_pool(tmp_path / f"{name}-pool", rows, parts)
        facts = build_clean(files, CleanConfig(**settings), tmp_path / name, Silent())
        return facts, rows_of(tmp_path / name), removed_of(tmp_path / name)

    return build


def variants(seed, groups, copies):
    """Texts of 60 words in groups; copies differ from the first in up to 12 words."""
    generator = random.Random(seed)
    rows = []
    for _ in range(groups):
        text = generator.choices(WORDS, k=60)
        for copy in range(copies):
            changed = list(text)
            for place in generator.sample(range(60), k=copy and generator.randint(0, 12)):
                changed[place] = generator.choice(WORDS)
            rows.append(pool_row(conversation(" ".join(changed), f"answer {len(rows)}")))
    return rows


def words_of(row):
    hasher = WordHasher()
    return join_words([hasher(message["content"]) for message in row["messages"] if message["role"] != "system"])


def brute_force_groups(rows, threshold):
    """Row ids that stay: of every group connected by exact similarity, the smallest."""
    sets = [shingle_set(words_of(row)) for row in rows]
    stays = {row["row_id"]: row["row_id"] for row in rows}
    alike = [
        (rows[a]["row_id"], rows[b]["row_id"])
        for a, b in combinations(range(len(rows)), 2)
        if jaccard(sets[a], sets[b]) >= threshold
    ]
    for _ in rows:
        for a, b in alike:
            stays[a] = stays[b] = min(stays[a], stays[b])
    return stays


def test_rows_too_short_and_too_long_go_with_their_reason_and_numbers_add_up(clean):
    rows = [pool_row(conversation(f"text {tokens}"), tokens, f"{tokens % 2}.jsonl") for tokens in (1, 9, 10, 500, 2000, 2001)]
    facts, left, removed = clean(rows, min_tokens=10, max_tokens=2000)
    assert facts == {
        "rows": 3,
        "tokens": 2510,
        "removed": {"min_tokens": 2, "max_tokens": 1, "benchmark": 0, "near_duplicate": 0},
    }
    assert left == sorted((row for row in rows if 10 <= row["n_tokens"] <= 2000), key=lambda row: row["row_id"])
    assert removed == sorted(
        [
            {"row_id": row["row_id"], "source": row["source"], "step": step, "reason": reason, "of": None}
            for row, step, reason in [
                (rows[0], "min_tokens", "1 tokens, fewer than 10"),
                (rows[1], "min_tokens", "9 tokens, fewer than 10"),
                (rows[5], "max_tokens", "2,001 tokens, more than 2,000"),
            ]
        ],
        key=lambda entry: entry["row_id"],
    )


def test_rows_that_hold_benchmark_text_go_and_name_it(clean, tmp_path, lines):
    files = [
        lines(tmp_path / "a" / "test.jsonl", [{"text": "nothing"}, {"q": "How many apples has Tom got left?"}]),
        lines(tmp_path / "b" / "test.jsonl", [{"answers": [{"text": "It is the third one from the left side"}]}]),
    ]
    held = [
        pool_row(conversation("Q: how many APPLES has Tom got?")),
        pool_row(conversation("which", "It is the third one, from the left.")),
        pool_row(conversation("x", system="you know: how many apples has tom")),
    ]
    free = [pool_row(conversation("how many apples has Ann got left?")), pool_row(conversation("nothing of interest"))]
    facts, left, removed = clean(held + free, benchmarks=[str(file) for file in files], ngram=5)
    assert {row["row_id"] for row in left} == {row["row_id"] for row in free}
    assert facts["removed"]["benchmark"] == 3
    assert {entry["row_id"]: entry["of"] for entry in removed} == {
        held[0]["row_id"]: "a/test.jsonl line 2",
        held[1]["row_id"]: "b/test.jsonl line 1",
        held[2]["row_id"]: "a/test.jsonl line 2",
    }
    assert {entry["reason"] for entry in removed} == {"shares a run of 5 words with a benchmark row"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"clean\.benchmarks: .*test\.jsonl: no such file"),
        ('{"a": "b"}\n{"a": \n', r"clean\.benchmarks: .*test\.jsonl: line 2: not valid JSON"),
    ],
)
def test_a_benchmark_that_cannot_be_read_whole_is_refused(clean, tmp_path, content, message):
    if content is not None:
        (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        clean([pool_row(conversation("x"))], benchmarks=[str(tmp_path / "test.jsonl")])
    assert "\n" not in str(raised.value)


def test_a_benchmark_of_an_unknown_kind_is_refused(clean, tmp_path):
    (tmp_path / "test.pdf").write_text("x")
    with pytest.raises(InputError, match=r"test\.pdf: unknown suffix .pdf; expected .*\.jsonl"):
        clean([pool_row(conversation("x"))], benchmarks=[str(tmp_path / "test.pdf")])


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_of_every_group_of_near_duplicates_the_smallest_id_stays(clean, threshold):
    rows = variants(0, groups=25, copies=6)
    facts, left, removed = clean(rows, near_duplicates=threshold)
    stays = brute_force_groups(rows, threshold)
    assert {row["row_id"] for row in left} == set(stays.values())
    assert {entry["row_id"]: entry["of"] for entry in removed} == {row: kept for row, kept in stays.items() if row != kept}
    assert facts["removed"]["near_duplicate"] == len(removed) > 5
    assert facts["rows"] + len(removed) == len(rows)


def test_a_row_linked_through_others_says_so(clean):
    words = WORDS[:60]
    chain = [pool_row(conversation(" ".join(words[start : start + 40]), "z")) for start in (0, 2, 4, 6, 8)]
    _, left, removed = clean(chain, near_duplicates=0.8)
    assert [row["row_id"] for row in left] == [min(row["row_id"] for row in chain)]
    by_id = {row["row_id"]: shingle_set(words_of(row)) for row in chain}
    for entry in removed:
        share = jaccard(by_id[entry["row_id"]], by_id[entry["of"]])
        linked = ", linked by rows in between" if share < 0.8 else ""
        assert entry["reason"] == f"Jaccard {share:.3f} to the row that is kept{linked}"
    assert any("linked" in entry["reason"] for entry in removed)


def test_the_words_of_system_messages_make_no_near_duplicates(clean):
    system = " ".join(WORDS[:200])
    rows = [pool_row(conversation(f"question {i} about {WORDS[i]}", f"{WORDS[-i]}", system)) for i in range(1, 6)]
    assert len(clean(rows, near_duplicates=0.5)[1]) == 5
    same = [pool_row(conversation("the very same question", "and answer", f"{system} {i}")) for i in range(3)]
    assert len(clean(same, "same", near_duplicates=0.5)[1]) == 1


def test_rows_without_a_word_are_no_duplicates_of_each_other(clean):
    rows = [pool_row(conversation(mark, "!")) for mark in ("?", "??", "...")]
    assert len(clean(rows, near_duplicates=0.5)[1]) == 3


def test_the_result_does_not_depend_on_how_the_pool_is_cut(clean, tmp_path, monkeypatch):
    rows = [*variants(3, groups=20, copies=4), pool_row(conversation("too long"), 9999)]
    settings = {"near_duplicates": 0.7, "max_tokens": 1000}
    built = [clean(rows, f"cut-{parts}", parts, **settings) for parts in (1, 2, 9)]
    monkeypatch.setattr(clean_stage, "BAND_ROWS", 7)
    built.append(clean(rows, "pieces", 4, **settings))
    assert all(result == built[0] for result in built)
    assert built[0][0]["removed"]["near_duplicate"] > 5


def test_a_crowd_of_copies_leaves_one_row(clean):
    rows = [pool_row(conversation(f"{' '.join(WORDS[:30])}{'!' * i}", "yes")) for i in range(1, 1300)]
    facts, left, _ = clean(rows, near_duplicates=0.8)
    assert facts["rows"] == 1
    assert left[0]["row_id"] == min(row["row_id"] for row in rows)


def test_a_row_is_counted_for_the_first_step_that_removes_it(clean, tmp_path, lines):
    text = " ".join(WORDS[:20])
    benchmark = lines(tmp_path / "test.jsonl", [{"text": text}])
    rows = [pool_row(conversation(text, f"{i}"), tokens) for i, tokens in enumerate((1, 9999, 50, 60))]
    twins = [pool_row(conversation(" ".join(WORDS[40:80]), f"{i}")) for i in range(2)]
    facts, left, _ = clean(rows + twins, min_tokens=5, max_tokens=100, benchmarks=[str(benchmark)], near_duplicates=0.8)
    assert facts["removed"] == {"min_tokens": 1, "max_tokens": 1, "benchmark": 2, "near_duplicate": 1}
    assert [row["row_id"] for row in left] == [min(row["row_id"] for row in twins)]


def test_a_pool_of_which_nothing_is_left_is_refused_and_the_rows_are_listed(clean, tmp_path):
    with pytest.raises(InputError, match=r"clean: none of 4 rows is left \(4 min_tokens\).*removed\.jsonl; relax the limits"):
        clean([pool_row(conversation(f"{i}")) for i in range(4)], min_tokens=100)
    assert len(removed_of(tmp_path / "clean")) == 4


def test_a_clean_pool_has_the_files_columns_and_order_of_the_pool(clean, tmp_path):
    rows = variants(1, groups=10, copies=2)
    clean(rows, near_duplicates=0.8)
    before, after = (sorted((tmp_path / name).glob("*.parquet")) for name in ("clean-pool", "clean"))
    assert [file.name for file in before] == [file.name for file in after]
    assert all(pq.read_schema(a).equals(pq.read_schema(b)) for a, b in zip(before, after, strict=True))
    ids = [row["row_id"] for row in rows_of(tmp_path / "clean")]
    assert ids == sorted(ids)
    assert sorted(path.name for path in (tmp_path / "clean").iterdir() if path.suffix != ".parquet") == ["removed.jsonl"]


def test_a_stopped_cleaning_is_continued_to_the_same_bytes(clean, tmp_path, monkeypatch):
    rows, made = variants(2, groups=10, copies=3), Counter()
    real = clean_stage.screen_part

    def counted(layout, part, config):
        made[part] += not layout.part_folder(part).exists()
        return real(layout, part, config)

    clean(rows, "whole", near_duplicates=0.8)
    files = write_pool(tmp_path / "pool", rows)
    monkeypatch.setattr(clean_stage, "screen_part", counted)
    with monkeypatch.context() as patch:
        patch.setattr(clean_stage, "write_twins", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_clean(files, CleanConfig(near_duplicates=0.8), tmp_path / "stopped", Silent())
    assert (tmp_path / "stopped" / "raw").is_dir()
    build_clean(files, CleanConfig(near_duplicates=0.8), tmp_path / "stopped", Silent())
    assert made == Counter({0: 1, 1: 1, 2: 1})
    whole, stopped = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "stopped"))
    assert whole == stopped


def test_on_ray_the_rows_are_the_same(cluster: Cluster, clean, tmp_path, monkeypatch, lines):
    rows = [*variants(4, groups=8, copies=3), pool_row(conversation("one two three four five six"))]
    benchmark = lines(tmp_path / "test.jsonl", [{"text": "one two three four five six"}])
    settings = {"near_duplicates": 0.8, "benchmarks": [str(benchmark)], "ngram": 6}
    facts, left, removed = clean(rows, "here", **settings)
    monkeypatch.undo()
    there = build_clean(write_pool(tmp_path / "pool", rows), CleanConfig(**settings), tmp_path / "there", Silent())
    assert (there, rows_of(tmp_path / "there"), removed_of(tmp_path / "there")) == (facts, left, removed)
    assert facts["removed"]["benchmark"] == 1
