from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from divsel_ray.errors import InputError
from divsel_ray.report import facts, records
from divsel_ray.report.examples import cut, read_selected
from divsel_ray.report.facts import read_run
from divsel_ray.report.records import Mean
from divsel_ray.store import write_json
from divsel_ray.usage import Usage
from tests.report.conftest import FakeRun
from tests.report.mapped import MappedRun

MakeRun = Callable[..., Path]


def change(folder: Path, stage: str, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    next(entry for entry in manifest["stages"] if entry["stage"] == stage)["facts"].update(values)
    write_json(folder / "manifest.json", manifest)


def test_gaps_are_means_with_standard_errors_over_rows_that_have_one(make_run: MakeRun) -> None:
    run = read_run(make_run(rounds=2))
    # gaps 1 and 3: mean 2, standard deviation sqrt(2), divided by sqrt(2)
    assert run.base_gap == Mean(2.0, pytest.approx(1.0), 2)
    assert run.rounds[0].gap == Mean(0.5, 0.0, 2)  # three rows, one of them without a gap
    assert run.rounds[1].held_out_gap == Mean(1.0, pytest.approx(0.5), 2)


def test_clusters_are_ordered_by_size_and_count_what_was_selected(make_run: MakeRun) -> None:
    clusters = read_run(make_run(rounds=2)).clustering.clusters
    assert [(c.number, c.size, c.selected, c.quality) for c in clusters] == [(0, 17, 3, 2.0), (1, 8, 2, 4.5), (2, 5, 1, None)]


def test_guards_and_counts_of_an_update_are_those_that_it_recorded(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    facts = {"guards": {"ceiling": 2, "disagreement": 1}, "scored_rows": 7, "scored_clusters": 2}
    change(folder, "round-1/weights", **facts, agreement=0.5, length_slope=-0.25, length_share=0.125)
    update = read_run(folder).rounds[0].update
    assert update is not None
    assert (update.guards, update.scored, update.clusters_scored) == (facts["guards"], 7, 2)
    assert (update.agreement, update.length_slope, update.length_share) == (0.5, -0.25, 0.125)


def test_the_noise_of_means_is_that_of_clusters_whose_rows_differ(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    [stage] = (folder / "round-1" / "weights").iterdir()
    gaps = [{"mean_gap": mean, "standard_error": error} for mean, error in ((1.0, 0.3), (2.0, 0.4), (3.0, 0.0), (None, None))]
    write_json(stage / "weights.json", gaps)
    update = read_run(folder).rounds[0].update
    assert update is not None
    # the mean of 0.09 and 0.16 is 0.125
    assert (update.spread, update.error) == (1.0, pytest.approx(0.125**0.5))


def test_a_held_out_loss_that_is_not_a_number_is_missing(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    change(folder, "round-1/train", held_out_loss_base=math.nan, held_out_loss=math.nan)
    training = read_run(folder).rounds[0].training
    assert training is not None
    assert training.held_out_loss is None
    assert training.held_out_loss_base is None


def test_a_stage_took_the_seconds_of_all_its_attempts_where_those_were_recorded(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    change(folder, "quality", usage=asdict(Usage(wall_s=90.0, attempts=2)))
    timings = {one.stage: one for one in read_run(folder).timings}
    assert (timings["quality"].seconds, timings["quality"].usage) == (90.0, Usage(wall_s=90.0, attempts=2))
    assert (timings["cluster"].seconds, timings["cluster"].usage) == (1.5, None)
    assert [name for name, one in timings.items() if one.cached] == ["pool"]


def test_removed_rows_are_counted_by_the_step_that_removed_them(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, 0)
    run.commit("clean", {"removed": {"short": 3, "near_duplicate": 0}})
    run.commit("semantic", {"removed": 2})
    assert read_run(run.build()).cleaned == {"short": 3, "near_duplicate": 0, "semantic_duplicate": 2}
    assert read_run(FakeRun(tmp_path / "other", 0).build()).cleaned == {}


@pytest.mark.parametrize(("metric", "known"), [("euclidean", True), ("cosine", False)])
def test_the_silhouette_is_that_of_euclidean_clusters(tmp_path: Path, metric: str, known: bool) -> None:
    folder = MappedRun(tmp_path, 0).build()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["cluster"]["metric"] = metric
    write_json(folder / "manifest.json", manifest)
    assert (read_run(folder).clustering.silhouette is not None) == known


def test_a_large_pool_is_sampled_at_even_steps_across_its_files(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "SAMPLE", 4)
    quality = read_run(make_run(rounds=1)).quality
    # 30 rows, every eighth: rows 0, 8 of the first file and 16, 24 of the second, of linspace(-1, 1, 30)
    assert quality is not None
    assert quality.pool == pytest.approx([-1 + 2 * at / 29 for at in (0, 8, 16, 24)])
    assert quality.selected == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_rounds_stay_in_number_order_beyond_nine() -> None:
    record = records.StageRecord(Path(), {}, 0.0, False)
    names = [f"round-{number}/draw" for number in (10, 2, 1)]
    assert records.round_numbers(dict.fromkeys([*names, "round-0/score", "static/draw"], record)) == [1, 2, 10]


def test_a_lost_file_is_named(make_run: MakeRun) -> None:
    folder = make_run(rounds=1)
    (folder / "selection.parquet").unlink()
    with pytest.raises(InputError, match=r"selection\.parquet: this file of the run is missing"):
        read_run(folder)


def test_a_broken_manifest_is_named(make_run: MakeRun) -> None:
    folder = make_run(rounds=0)
    (folder / "manifest.json").write_text('{"rows": ')
    with pytest.raises(InputError, match=r"manifest\.json: not a valid run manifest"):
        read_run(folder)


def test_shown_rows_come_from_different_clusters(make_run: MakeRun) -> None:
    rows = read_selected(make_run(rounds=2), [2, 0, 1], 2)
    assert [(row.cluster, row.quality) for row in rows] == [(2, None), (0, 1.0)]
    assert rows[0].prompt.startswith("[system] Be brief.\n\n[user] <script>")


def test_a_cut_text_ends_in_an_ellipsis() -> None:
    assert cut(" abc ", 3) == "abc"
    assert cut("ab cd", 3) == "ab …"
