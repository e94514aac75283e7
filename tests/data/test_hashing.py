from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from divsel_ray.data import hashing
from divsel_ray.data.hashing import id_array, uniform_hash

N = 50_000
IDS = np.array([hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(N)], dtype="S32")


def unit(seed, purpose, ids=IDS):
    return uniform_hash(seed, purpose, ids) / 2.0**64


def reference(seed, purpose, row_id):
    """The same in Python integers."""
    mask = 2**64 - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    first, second = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
    high, low = int(row_id[:16], 16), int(row_id[16:], 16)
    return mix(mix((high + first) & mask) ^ ((low + second) & mask))


def test_the_hash_equals_a_plain_reference():
    expected = [reference(7, "draw", row_id.decode()) for row_id in IDS[:200]]
    assert uniform_hash(7, "draw", IDS[:200]).tolist() == expected


def test_strings_bytes_and_objects_hash_alike():
    as_bytes = uniform_hash(0, "a", IDS[:9])
    assert np.array_equal(as_bytes, uniform_hash(0, "a", IDS[:9].astype(str)))
    assert np.array_equal(as_bytes, uniform_hash(0, "a", [row_id.decode() for row_id in IDS[:9]]))
    assert np.array_equal(as_bytes, uniform_hash(0, "a", IDS[:9].astype(str).astype(object)))


def test_the_hash_does_not_depend_on_the_place_of_a_row():
    order = np.random.default_rng(0).permutation(N)
    assert np.array_equal(uniform_hash(3, "a", IDS)[order], uniform_hash(3, "a", IDS[order]))


def test_the_hash_is_uniform():
    counts, _ = np.histogram(unit(0, "sample"), bins=100, range=(0, 1))
    chi_square = ((counts - N / 100) ** 2 / (N / 100)).sum()
    assert chi_square < 160  # 99 degrees of freedom: exceeded with probability 1e-4


@pytest.mark.parametrize("other", [(0, "draw"), (1, "sample")])
def test_purposes_and_seeds_are_independent(other):
    a, b = unit(0, "sample"), unit(*other)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(N)
    counts, _, _ = np.histogram2d(a, b, bins=10, range=[(0, 1), (0, 1)])
    assert ((counts - N / 100) ** 2 / (N / 100)).sum() < 160


@pytest.mark.parametrize("place", [0, 15, 16, 31])
def test_every_digit_of_the_id_counts(place):
    row_id = "0" * 32
    changed = row_id[:place] + "1" + row_id[place + 1 :]
    a, b = uniform_hash(0, "a", [row_id, changed])
    assert 8 < (int(a) ^ int(b)).bit_count() < 56


def test_many_rows_are_hashed_some_at_a_time_and_all_of_them(monkeypatch):
    expected = uniform_hash(0, "a", IDS[:20]).tolist()
    monkeypatch.setattr(hashing, "_CHUNK", 7)
    assert uniform_hash(0, "a", IDS[:20]).tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_ids_of_a_column_are_those_of_its_rows_however_it_is_cut(kind):
    ids = pa.array(IDS[:9].astype(str), kind)
    expected = IDS[:9].tolist()
    assert id_array(ids).tolist() == expected
    assert id_array(ids.slice(2, 4)).tolist() == expected[2:6]
    assert id_array(pa.chunked_array([ids.slice(5), ids[:0], ids.slice(1, 3)])).tolist() == expected[5:] + expected[1:4]
    assert id_array(pa.chunked_array([], kind)).tolist() == []


@pytest.mark.parametrize("ids", [["0" * 32, None], ["0" * 31, "0" * 33], [""]])
def test_a_column_that_holds_anything_else_is_refused(ids):
    with pytest.raises(ValueError, match="32 hex digits"):
        id_array(pa.array(ids, pa.string()))


def test_no_ids_give_no_hashes():
    empty = uniform_hash(0, "a", np.array([], dtype="S32"))
    assert empty.shape == (0,)
    assert empty.dtype == np.uint64


@pytest.mark.parametrize("row_id", ["0" * 31, "0" * 33, "g" * 32, "A" * 32, ""])
def test_what_is_no_row_id_is_refused(row_id):
    with pytest.raises(ValueError, match="32 hex digits"):
        uniform_hash(0, "a", [row_id])
