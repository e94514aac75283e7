"""The plan of batches: every row once per epoch, the same steps whoever computes them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from divsel_ray.train.plan import column_bounds, cut_steps, part_bounds, parts_of, plan_steps


def steps_of(rows: int, per_part: int, parts: int, workers: int, epochs: int, seed: int) -> list[list[int]]:
    """The global row numbers of every step, put together from all workers."""
    columns, bounds = parts * per_part, part_bounds(rows, parts)
    longest = -(-rows // columns)
    joined: list[list[int]] = [[] for _ in range(epochs * longest)]
    for worker in range(workers):
        mine = parts_of(worker, workers, parts)
        held = range(mine.start * per_part, mine.stop * per_part)
        ends = column_bounds(rows, columns, held)
        assert ends[-1] == bounds[mine.stop] - bounds[mine.start]
        sizes = [end - start for start, end in pairwise(ends)]
        for step, taken in zip(joined, plan_steps(sizes, held, longest, epochs, seed), strict=True):
            step.extend(entry + bounds[mine.start] for entry in taken)
    return joined


def test_parts_cover_the_rows_and_differ_by_one_at_most():
    assert part_bounds(10, 4) == [0, 2, 5, 7, 10]
    assert [list(parts_of(worker, 2, 5)) for worker in range(2)] == [[0, 1], [2, 3, 4]]


@given(
    rows=st.integers(1, 60),
    batch=st.integers(1, 4),
    workers=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_epoch_takes_every_row_once_in_full_steps(rows, batch, workers, epochs, seed):
    steps = steps_of(rows, batch, workers, workers, epochs, seed)
    per_epoch = len(steps) // epochs
    for epoch in range(epochs):
        taken = [row for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for row in step]
        assert sorted(taken) == list(range(rows))
    assert all(1 <= len(step) <= batch * workers for step in steps)


@given(rows=st.integers(1, 60), batch=st.integers(1, 3), seed=st.integers(0, 9))
def test_the_steps_do_not_depend_on_how_many_workers_share_them(rows, batch, seed):
    alone = steps_of(rows, batch * 4, 1, 1, 2, seed)
    for parts, workers in ((4, 4), (4, 3), (4, 1), (2, 2)):
        assert steps_of(rows, batch * 4 // parts, parts, workers, 2, seed) == alone


def test_the_order_changes_with_the_epoch_and_the_seed():
    first = steps_of(40, 4, 1, 1, 2, seed=0)
    assert first[:10] != first[10:]
    assert first != steps_of(40, 4, 1, 1, 2, seed=1)


def test_every_column_has_an_order_of_its_own():
    first, second = zip(*plan_steps([40, 40], range(2), steps=40, epochs=1, seed=0), strict=True)
    assert sorted(first) == list(range(40))
    assert sorted(second) == list(range(40, 80))
    assert [entry + 40 for entry in first] != list(second)


def test_a_step_is_cut_into_as_many_batches_on_every_worker():
    assert cut_steps([[0, 1, 2], [3]], 2, 2) == [[0, 1], [2], [3], []]
