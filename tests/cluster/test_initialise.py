import numpy as np
import pytest

from divsel_ray.cluster import initialise
from divsel_ray.cluster.initialise import Draw


def test_uniform_numbers_are_uniform_and_differ_by_seed_start_step_and_row():
    indices = np.arange(20_000)
    numbers = initialise.uniforms(Draw(0, 0, 0), indices)
    assert 0 < numbers.min() < numbers.max() < 1
    assert np.abs(np.histogram(numbers, bins=10, range=(0, 1))[0] - 2000).max() < 200
    for other in (Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1)):
        assert abs(np.corrcoef(numbers, initialise.uniforms(other, indices))[0, 1]) < 0.03


def test_a_draw_does_not_depend_on_how_rows_are_split():
    generator = np.random.default_rng(0)
    rows, weights = generator.normal(size=(500, 3)).astype(np.float16), generator.random(500)
    whole = initialise.sample(rows, weights, 7, Draw(3, 0, 1))
    parts = [initialise.sample(rows[a:b], weights[a:b], 7, Draw(3, 0, 1), first=a) for a, b in ((0, 3), (3, 250), (250, 500))]
    merged = initialise.merge(parts, 7)
    assert merged.indices.tolist() == whole.indices.tolist()
    assert (merged.rows == rows[merged.indices]).all()
    assert len(set(merged.indices.tolist())) == 7


def test_rows_are_drawn_in_proportion_to_their_weight():
    rows, weights = np.zeros((4, 1), np.float32), np.array([0.0, 1.0, 2.0, 5.0])
    drawn = [int(initialise.sample(rows, weights, 1, Draw(0, 0, step)).indices[0]) for step in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    assert shares[0] == 0
    assert shares[1:] == pytest.approx([0.125, 0.25, 0.625], abs=0.025)


def test_rows_without_weight_are_drawn_by_row_number():
    rows = np.zeros((3, 1), np.float32)
    assert initialise.sample(rows, np.zeros(3), 1, Draw(0, 0, 0), first=5).indices.tolist() == [5]
