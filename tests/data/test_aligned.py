"""Vectors and scores that users bring: lined up by row id, or by place in the one input file."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.data.aligned import check_given, mappable, rows_read, take_given, unpack, width_of
from divsel_ray.embed.given import _take
from divsel_ray.errors import InputError

IDS = [f"{number:032x}" for number in (7, 3, 9, 1)]


def part(ids, positions):
    return pa.table({"row_id": pa.array(ids, pa.string()), "position": pa.array(positions, pa.int64())})


def test_parquet_is_lined_up_by_row_id_whatever_its_order(tmp_path):
    table = pa.table({"row_id": IDS, "embedding": [[float(i), 0.5] for i in range(4)], "quality": [1.0, None, 3.0, 4.0]})
    (tmp_path / "given").mkdir()
    pq.write_table(table.slice(0, 3), tmp_path / "given" / "a.parquet")
    pq.write_table(table.slice(3), tmp_path / "given" / "b.parquet")
    wanted = part([IDS[3], IDS[1], f"{5:032x}", IDS[0]], [0, 0, 0, 0])
    vectors = take_given(str(tmp_path / "given"), "s", "embedding", wanted)
    assert vectors[:, 0].tolist()[:2] == [3.0, 1.0]
    assert np.isnan(vectors[2]).all()
    assert vectors[3].tolist() == [0.0, 0.5]
    scores = take_given(str(tmp_path / "given"), "s", "quality", wanted)
    assert np.isnan(scores[1:3]).all()
    assert scores[[0, 3]].tolist() == [4.0, 1.0]
    assert width_of(str(tmp_path / "given"), "s", "embedding") == 2


def test_no_row_in_common_gives_nothing_but_missing_values(tmp_path):
    pq.write_table(pa.table({"row_id": IDS, "embedding": [[1.0, 2.0]] * 4}), tmp_path / "a.parquet")
    assert np.isnan(take_given(str(tmp_path / "a.parquet"), "s", "embedding", part(["f" * 32], [0]))).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 4)])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_vector_that_is_null_is_missing_and_moves_no_other(tmp_path, kind, missing):
    vectors = [[1.0, 0.0, 0.0, None], [0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [3.0, 3.0, 3.0, 3.0]]
    vectors[missing] = None
    table = pa.table({"row_id": IDS, "embedding": pa.array(vectors, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    found = take_given(str(tmp_path / "a.parquet"), "s", "embedding", part(IDS, [0] * 4))
    expected = np.array([[np.nan] * 4 if vector is None else vector for vector in vectors], float)
    np.testing.assert_array_equal(found.astype(float), expected)
    assert width_of(str(tmp_path / "a.parquet"), "s", "embedding") == 4


def test_a_pool_row_whose_vector_is_null_is_named(tmp_path):
    pq.write_table(pa.table({"row_id": IDS[:2], "embedding": [[1.0, 0.0, 0.0, 1.0], None]}), tmp_path / "a.parquet")
    pq.write_table(part(IDS[:2], [0, 1]), tmp_path / "pool.parquet")
    with pytest.raises(InputError, match=f"1 of 2 rows read have .* non-finite vector; the first is row_id {IDS[1]}"):
        _take(str(tmp_path / "pool.parquet"), str(tmp_path / "a.parquet"), 4, str(tmp_path / "out.parquet"))


def test_vectors_of_different_lengths_are_refused(tmp_path):
    pq.write_table(pa.table({"row_id": IDS[:2], "embedding": [[1.0], [1.0, 2.0, 3.0]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"^s: .*a\.parquet: vectors of lengths 1 and 3"):
        take_given(str(tmp_path / "a.parquet"), "s", "embedding", part(IDS[:2], [0, 0]))


@pytest.mark.parametrize("name", ["v.npy", "v.npy.gz"])
def test_arrays_are_lined_up_by_place(tmp_path, name):
    matrix = np.arange(12.0).reshape(6, 2)
    with gzip.open(tmp_path / name, "wb") if name.endswith("gz") else (tmp_path / name).open("wb") as stream:
        np.save(stream, matrix)
    found = take_given(str(tmp_path / name), "s", "embedding", part(IDS, [5, 0, 3, 1]))
    assert found.tolist() == matrix[[5, 0, 3, 1]].tolist()
    assert width_of(str(tmp_path / name), "s", "embedding") == 2


def test_what_cannot_be_lined_up_is_refused_before_any_work(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((6, 2)))
    pq.write_table(pa.table({"row_id": IDS, "vector": [1.0] * 4}), tmp_path / "a.parquet")
    (tmp_path / "broken.npy").write_bytes(b"no array")
    cases = {
        "v.npy": ({"a.jsonl": 7}, "s: .*v.npy: 6 rows for an input of 7 records"),
        "gone.npy": ({"a.jsonl": 6}, "gone.npy: no such file"),
        "a.parquet": ({"a.jsonl": 4}, "no column embedding; expected row_id and embedding"),
        "broken.npy": ({"a.jsonl": 4}, "not a NumPy array"),
    }
    for name, (records, message) in cases.items():
        with pytest.raises(InputError, match=message):
            check_given(str(tmp_path / name), "s", "embedding", records)
    with pytest.raises(InputError, match="works with one input file only; there are 2"):
        check_given(str(tmp_path / "v.npy"), "s", "embedding", {"a": 3, "b": 3})
    check_given(str(tmp_path / "v.npy"), "s", "embedding", {"a": 6})


def compressed(path, array, damaged=0):
    np.save(path.with_suffix(""), array)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes())[: -damaged or None])
    return path


def test_a_compressed_array_is_unpacked_once_for_all_who_read_of_it(tmp_path):
    given = compressed(tmp_path / "v.npy.gz", np.arange(12.0).reshape(6, 2))
    target = mappable(str(given), tmp_path / "stage")
    unpack(str(given), target, "s")
    given.unlink()
    unpack(str(given), target, "s")
    assert take_given(str(target), "s", "embedding", part(IDS, [5, 0, 3, 1])).tolist() == [[10, 11], [0, 1], [6, 7], [2, 3]]
    assert mappable("v.npy", tmp_path) is mappable("v.parquet", tmp_path) is None


def test_a_compressed_array_that_is_cut_off_leaves_nothing_behind(tmp_path):
    given = compressed(tmp_path / "v.npy.gz", np.random.default_rng(0).random((600, 20)), damaged=2000)
    check_given(str(given), "s", "embedding", {"a": 600})
    with pytest.raises(InputError, match=r"^s: .*v\.npy\.gz: not a NumPy array"):
        unpack(str(given), tmp_path / "out.npy", "s")
    assert not (tmp_path / "out.npy").exists()


def test_how_often_rows_are_read_tells_a_sorted_file_from_one_that_is_not(tmp_path):
    ids = [f"{number:032x}" for number in range(1000)]
    pool = []
    for start in range(0, 1000, 100):
        pool.append(str(tmp_path / f"pool-{start}.parquet"))
        pq.write_table(pa.table({"row_id": ids[start : start + 100]}), pool[-1])
    for name, order in (("sorted", np.arange(1000)), ("mixed", np.random.default_rng(0).permutation(1000))):
        table = pa.table({"row_id": [ids[at] for at in order], "quality": np.arange(1000.0)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=50)
    assert rows_read(str(tmp_path / "sorted.parquet"), "s", pool) == 1
    assert rows_read(str(tmp_path / "mixed.parquet"), "s", pool) == pytest.approx(10, abs=0.5)
