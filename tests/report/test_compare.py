from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from divsel_ray.errors import InputError
from divsel_ray.report.compare import Spread, compare_runs, jaccard, unstable
from tests.report.conftest import FakeRun


def test_the_overlap_is_shared_rows_over_all() -> None:
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert jaccard(set(), set()) == 1.0


def test_runs_that_chose_and_learned_the_same_do_not_vary(tmp_path: Path) -> None:
    folders = [FakeRun(tmp_path / name, 2).build() for name in "ab"]
    found = compare_runs(folders)
    assert found.overlap == 1.0
    # six of thirty rows each: 1.2 shared by chance, of 10.8
    assert found.overlap_by_chance == pytest.approx(1 / 9)
    assert [one.gain for one in found.compared] == [1.0, 1.0]
    assert found.held_out_gap == Spread(1.0, 0.0)
    assert found.signs == []


@pytest.mark.parametrize(("deviation", "signs"), [(0.5, 0), (0.51, 1)])
def test_gains_that_spread_by_more_than_half_their_mean_are_unstable(deviation: float, signs: int) -> None:
    assert len(unstable(Spread(-1.0, deviation), None, [])) == signs


def test_a_gap_that_spreads_by_more_than_its_error_explains_is_unstable() -> None:
    assert unstable(None, Spread(1.0, 0.2), [0.1, 0.1]) == []
    [sign] = unstable(Spread(1.0, 0.1), Spread(1.0, 0.21), [0.1, 0.1])
    assert sign.evidence == "the held-out gap varies by 0.21, but its standard error within a run is 0.1"


def test_the_errors_of_gaps_are_those_of_the_runs(tmp_path: Path) -> None:
    first, second = (FakeRun(tmp_path / name, 2).build() for name in "ab")
    [file] = second.glob("round-2/score/*/gaps.parquet")
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index("gap"), "gap", pc.add(table["gap"], 4.0)), file)
    found = compare_runs([first, second])
    # 0.5 and 1.5 held out in one, 4.5 and 5.5 in the other: means 1 and 5, each with a standard error of 0.5.
    assert found.held_out_gap == Spread(3.0, pytest.approx(8**0.5))
    [sign] = found.signs
    assert sign.evidence == "the held-out gap varies by 2.83, but its standard error within a run is 0.5"


def test_a_single_run_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only one run"):
        compare_runs([tmp_path])
