from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divsel_ray.data.spill import SpillWriter, partition_of, read_partition


def row(number, score=None, position=7):
    return {
        "row_id": f"{number:032x}",
        "messages": [{"role": "user", "content": str(number)}],
        "position": position,
        "score": score,
    }


def test_partitions_are_ranges_of_the_id():
    ids = ["0" * 32, "7" + "f" * 31, "8" + "0" * 31, "f" * 32]
    assert [partition_of(row_id, 1) for row_id in ids] == [0, 0, 0, 0]
    assert [partition_of(row_id, 2) for row_id in ids] == [0, 0, 1, 1]
    assert [partition_of(row_id, 1000) for row_id in ids] == [0, 499, 500, 999]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**128 - 1), max_size=30, unique=True), st.integers(1, 7), st.sampled_from([1, 600, 1 << 20]))
def test_every_row_comes_back_from_its_partition_in_order(tmp_path, numbers, n_partitions, chunk_bytes):
    with SpillWriter(tmp_path, n_partitions, chunk_bytes) as writer:
        for number in numbers:
            writer.add(row(number))
    for partition in range(n_partitions):
        back = [value for batch in read_partition(tmp_path, partition) for value in batch.to_pylist()]
        assert back == [row(n) for n in numbers if partition_of(row(n)["row_id"], n_partitions) == partition]


@pytest.mark.parametrize(("scores", "kept"), [((1.0, 3.0, 2.0), 3.0), ((None, -1.0, None), -1.0), ((None, None), None)])
def test_a_row_seen_in_the_same_chunk_is_counted_and_left_out_but_for_a_larger_score(tmp_path, scores, kept):
    with SpillWriter(tmp_path, 1) as writer:
        for score in scores:
            writer.add(row(5, score))
    assert writer.duplicates == len(scores) - 1
    assert [value["score"] for batch in read_partition(tmp_path, 0) for value in batch.to_pylist()] == [kept]
