import numpy as np
import pytest

from divsel_ray.cluster import initialise
from divsel_ray.cluster.initialise import Draw
from tests.cluster.vectors import geometry_of, shards_of


def drawn(rows, k, seed, draw=initialise.plus_plus, parts=1):
    return draw(shards_of(rows, parts), k, seed, 0, geometry_of(rows), lambda done: None)


def test_uniform_numbers_are_uniform_and_differ_by_seed_start_purpose_step_and_row():
    indices = np.arange(20_000)
    numbers = initialise.uniforms(Draw(0, 0, 0, 0), indices)
    assert 0 < numbers.min() < numbers.max() < 1
    assert np.abs(np.histogram(numbers, bins=10, range=(0, 1))[0] - 2000).max() < 200
    for other in (Draw(1, 0, 0, 0), Draw(0, 1, 0, 0), Draw(0, 0, 1, 0), Draw(0, 0, 0, 1)):
        assert abs(np.corrcoef(numbers, initialise.uniforms(other, indices))[0, 1]) < 0.03


def test_random_rows_are_all_equally_likely_and_none_is_drawn_twice():
    rows = np.arange(6, dtype=np.float32)[:, None]
    draws = np.array([initialise.random_rows(shards_of(rows, 2), 3, seed, 0)[:, 0] for seed in range(3000)])
    assert all(len(set(draw)) == 3 for draw in draws.tolist())
    assert np.bincount(draws.ravel().astype(int)) / 3000 == pytest.approx([0.5] * 6, abs=0.03)


def test_the_second_centroid_of_k_means_plus_plus_is_drawn_by_squared_distance():
    rows = np.array([[0.0], [1.0], [3.0]])
    seconds = []
    for seed in range(6000):
        first, second = drawn(rows.astype(np.float32), 2, seed)[:, 0]
        if first == 0:
            seconds.append(second)
    assert len(seconds) > 1500
    assert np.mean(np.array(seconds) == 3) == pytest.approx(9 / 10, abs=0.02)


def test_batches_of_candidates_leave_the_distribution_that_of_one_after_the_other():
    rows = np.array([[0.0], [0.2], [1.0], [1.3], [4.0]], np.float32)

    def sequential(generator):
        chosen = [int(generator.integers(5))]
        while len(chosen) < 4:
            weights = np.square(rows - rows[chosen].T).min(axis=1)
            chosen.append(int(generator.choice(5, p=weights / weights.sum())))
        return tuple(sorted(chosen))

    generator = np.random.default_rng(0)
    count = 3000
    expected, found = {}, {}
    for seed in range(count):
        key = sequential(generator)
        expected[key] = expected.get(key, 0) + 1
        key = tuple(sorted(int(np.flatnonzero(rows[:, 0] == value)[0]) for value in drawn(rows, 4, seed)[:, 0]))
        found[key] = found.get(key, 0) + 1
    for key in expected | found:
        assert found.get(key, 0) / count == pytest.approx(expected.get(key, 0) / count, abs=0.03)


@pytest.mark.parametrize("draw", [initialise.plus_plus, initialise.parallel])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_drawn_does_not_depend_on_how_rows_are_split(draw, dtype):
    rows = np.random.default_rng(0).normal(size=(700, 9)).astype(dtype)
    one, three, nine = (drawn(rows, 90, 4, draw, parts) for parts in (1, 3, 9))
    assert one.tobytes() == three.tobytes() == nine.tobytes()
    assert len(np.unique(one, axis=0)) == 90
    assert all((rows.astype(np.float32) == row).all(axis=1).any() for row in one)


def test_distinct_rows_are_drawn_before_any_is_drawn_twice():
    rows = np.repeat(np.array([[0.0], [1.0], [5.0]], np.float32), [50, 3, 1], axis=0)
    for seed in range(20):
        assert sorted(drawn(rows, 3, seed)[:, 0]) == [0, 1, 5]
        assert set(drawn(rows, 8, seed)[:, 0]) == {0, 1, 5}


def test_k_means_parallel_falls_back_where_too_few_rows_are_distinct():
    rows = np.repeat(np.array([[0.0], [1.0], [5.0]], np.float32), 20, axis=0)
    assert set(drawn(rows, 5, 0, initialise.parallel)[:, 0]) == {0, 1, 5}


def test_integer_distances_are_the_squared_distances():
    rows = np.random.default_rng(1).normal(size=(60, 7)).astype(np.float16)
    geometry = geometry_of(rows)
    squares = initialise.exact_squares(rows[:9].astype(np.float32), rows.astype(np.float32), geometry)
    expected = np.square(rows[:9, None].astype(float) - rows[None]).sum(axis=2)
    scale = np.median(squares[expected > 0] / expected[expected > 0])
    np.testing.assert_allclose(squares / scale, expected, atol=1e-5)
    assert (squares == np.rint(squares)).all()
    assert squares.max() < 2**53
