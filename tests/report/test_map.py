from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from divsel_ray.errors import InputError
from divsel_ray.report import charts, points, sample
from divsel_ray.report.html import hover_text
from divsel_ray.report.map import project
from divsel_ray.report.page import write_report
from divsel_ray.report.points import Points, read_points
from divsel_ray.report.portraits import Portrait, look_at_clusters
from divsel_ray.report.records import read_stages
from divsel_ray.report.sample import Parts, find_parts
from tests.report.conftest import HOSTILE
from tests.report.mapped import MappedRun

MakeMapped = Callable[..., Path]


@pytest.fixture
def make_mapped(tmp_path: Path) -> MakeMapped:
    return lambda **settings: MappedRun(tmp_path / "run", **{"rounds": 0, **settings}).build()


def parts_of(folder: Path) -> Parts:
    found = find_parts(read_stages(folder)[1])
    assert found
    return found


def groups(rows: int = 120, dimension: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three groups far apart, in turn."""
    label = np.arange(rows) % 3
    corners = 10 * np.eye(3, dimension)
    return (corners[label] + 0.1 * np.random.default_rng(0).standard_normal((rows, dimension))).astype(np.float32), label


def test_rows_of_one_group_are_neighbours_on_the_map() -> None:
    vectors, label = groups()
    places = project(vectors)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    assert places.shape == (120, 2)
    assert (label[apart.argmin(axis=1)] == label).all()


def test_the_same_vectors_give_the_same_bytes_with_any_number_of_threads() -> None:
    vectors, _ = groups()
    with threadpool_limits(1):
        once = project(vectors)
    with threadpool_limits(2):
        again = project(vectors)
    assert once.tobytes() == again.tobytes()


def test_few_rows_lie_as_their_main_components_do() -> None:
    places = project(np.array([[0, 0, 0], [3, 4, 0], [9, 12, 0]], np.float32))
    assert np.abs(np.diff(places[:, 0])) == pytest.approx([5, 10], abs=1e-5)
    assert places[:, 1] == pytest.approx([0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (80, 4), (2, 1), (80, 1)])
def test_rows_that_are_all_the_same_lie_on_one_another(shape: tuple[int, int]) -> None:
    assert project(np.ones(shape, np.float32)) == pytest.approx(np.zeros((shape[0], 2)), abs=1e-6)


def test_vectors_of_one_dimension_have_a_map() -> None:
    places = project(np.arange(60, dtype=np.float32)[:, None])
    assert places.shape == (60, 2)
    assert np.isfinite(places).all()


def test_lengths_count_only_where_vectors_are_no_directions() -> None:
    vectors = np.array([[1, 0], [2, 0], [0, 3], [0, 1]], np.float32)
    one, two, three, four = project(vectors, directions=True)
    assert (one, three) == (pytest.approx(two, abs=1e-6), pytest.approx(four, abs=1e-6))
    assert not np.allclose(project(vectors)[0], project(vectors)[1])


def test_every_row_of_a_small_pool_is_on_the_map_and_selected_ones_are_marked(make_mapped: MakeMapped) -> None:
    found = read_points(make_mapped(), directions=False)
    assert found
    assert (len(found.texts), found.marked, found.pool_rows) == (30, 6, 24)
    assert sorted(found.clusters[found.selected].tolist()) == [0, 0, 0, 1, 1, 2]
    assert {text for text, marked in zip(found.texts, found.selected, strict=True) if not marked} == {
        f"question {at}" for at in range(6, 30)
    }


def test_of_a_large_pool_the_first_rows_of_every_part_are_on_it(make_mapped: MakeMapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "POOL_ROWS", 10)
    monkeypatch.setattr(points, "SELECTED_ROWS", 0)
    folder = make_mapped(pool_rows=80)
    run = MappedRun(folder, 0, pool_rows=80)
    expected = [f"question {row}" for (_, _, rows), count in zip(run._cut(), (2, 3, 2, 3), strict=True) for row in rows[:count]]
    found = read_points(folder, directions=False)
    assert found
    assert [text for text in found.texts if text.startswith("question")] == [one for one in expected if int(one[9:]) > 5]


def test_of_many_parts_only_some_are_opened(make_mapped: MakeMapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "FILES", 2)
    folder = make_mapped(pool_rows=80)
    parts = parts_of(folder)
    assert parts.names == ["part-00000.parquet", "part-00002.parquet"]
    for file in (*parts.pool.glob("*[13].parquet"), *parts.embeddings.glob("*[13].parquet")):
        file.write_bytes(b"not read")
    found = read_points(folder, directions=False)
    assert found
    assert (found.marked + found.pool_rows, look_at_clusters(parts, [0], 3).rows) == (40, 40)


def test_nothing_beyond_the_last_wanted_row_is_read(make_mapped: MakeMapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_BATCH", 2)
    parts = parts_of(make_mapped(pool_rows=80))
    read: list[int] = []
    real = sample.pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        sample.pq.ParquetFile, "iter_batches", lambda *a, **b: (read.append(len(batch)) or batch for batch in real(*a, **b))
    )
    table = sample.read_at(parts.pool, ["prompt"], [(parts.names[1], 3), (parts.names[1], 0)])
    assert (table.num_rows, sum(read)) == (2, 4)


def test_the_page_is_the_same_wherever_the_folder_lies_and_with_the_points_made_again(
    make_mapped: MakeMapped, tmp_path: Path
) -> None:
    folder = make_mapped(pool_rows=60)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert write_report(moved).read_bytes() == first
    shutil.rmtree(moved / "map")
    assert write_report(moved).read_bytes() == first


def test_points_once_made_are_not_made_again(make_mapped: MakeMapped, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_mapped()
    first = read_points(folder, directions=False)
    monkeypatch.setattr(points, "project", lambda *_, **__: pytest.fail("made again"))
    again = read_points(folder, directions=False)
    assert first
    assert again
    assert again.places.tobytes() == first.places.tobytes()


def test_a_file_that_is_gone_is_named_in_one_line(make_mapped: MakeMapped) -> None:
    folder = make_mapped()
    gone = parts_of(folder).pool / "part-00001.parquet"
    gone.unlink()
    with pytest.raises(InputError, match=rf"{gone}: this file of the run is missing; run divsel run again"):
        write_report(folder)


def test_the_page_says_what_the_map_shows(make_mapped: MakeMapped) -> None:
    text = " ".join(write_report(make_mapped(pool_rows=60)).read_text(encoding="utf-8").split())
    assert "Ringed: 6 selected rows. The others: 54 rows of the pool." in text
    assert "t-SNE" in text
    assert "distances between groups" in text


def test_the_page_says_how_few_rows_were_placed(make_mapped: MakeMapped) -> None:
    text = " ".join(write_report(make_mapped()).read_text(encoding="utf-8").split())
    assert "(the first two principal components)" in text


def test_portraits_are_the_nearest_prompts_and_the_farthest(make_mapped: MakeMapped) -> None:
    folder = make_mapped(rounds=1, parts=3)
    parts = parts_of(folder)
    rows = []
    for name in parts.names:
        table = sample.pq.read_table(parts.clusters / name).to_pylist()
        texts = sample.pq.read_table(parts.pool / name)["prompt"].to_pylist()
        rows += [(row["distance"], text) for row, text in zip(table, texts, strict=True) if row["cluster"] == 1]
    order = [text for _, text in sorted(rows)]
    look = look_at_clusters(parts, [1], 3)
    assert (look.rows, look.portraits) == (30, [Portrait(1, order[:2], order[-1:])])


def test_the_quality_of_a_cluster_is_the_mean_of_its_rows_that_have_one(make_mapped: MakeMapped) -> None:
    quality = look_at_clusters(parts_of(make_mapped(rounds=1)), [], 4).quality
    # rows 0 to 2 and 6, 9, ... 27; then 3, 4 and 10, 13, ... 28 (7 has none); then 5 and 11, 14, ... 29 (nor has 8)
    assert quality == [(3 + 132) / 11, (7 + 133) / 9, (5 + 140) / 8, None]


def test_a_cluster_of_two_rows_has_nothing_odd(make_mapped: MakeMapped) -> None:
    look = look_at_clusters(parts_of(make_mapped(pool_rows=5)), [1, 2], 3)
    assert [(len(one.typical), len(one.odd)) for one in look.portraits] == [(2, 0), (0, 0)]


def many(clusters: int) -> Points:
    rows = 2 * clusters
    places = np.stack([np.arange(rows) % 25, np.arange(rows) // 25], axis=1).astype(np.float32)
    return Points(places, np.arange(rows, dtype=np.int32) // 2, np.arange(rows) % 2 == 0, ["text"] * rows)


def test_of_many_clusters_the_largest_are_listed_and_the_others_are_one_entry() -> None:
    figure = charts.map_figure(many(40), list(range(40)))
    listed = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert listed == [*(f"cluster {number}" for number in range(12)), "other clusters"]
    [others] = [trace for trace in figure.data if trace.legendgroup == "other clusters" and trace.meta == "selected"]
    assert list(others.customdata) == list(range(12, 40))
    # Ten colours, then the same with the next shape.
    assert others.marker.color[8] == others.marker.color[18]
    assert others.marker.symbol[8] != others.marker.symbol[18]


def test_numbers_on_the_map_keep_apart_from_one_another_and_from_selected_rows() -> None:
    rows = many(40)
    [names] = [trace for trace in charts.map_figure(rows, list(range(40))).data if trace.meta == "name"]
    assert len(names.text) > 1
    places, unit = np.stack([names.x, names.y], axis=1), np.array([24, 3])
    assert (np.abs(places[:, None] - places[None]) / unit < 0.06).all(axis=2).sum() == len(places)
    assert not (places[:, None] == rows.places[rows.selected][None]).all(axis=2).any()


def test_the_more_rows_are_selected_the_smaller_they_are_drawn() -> None:
    sizes = {}
    for clusters in (40, 200, 1000):
        figure = charts.map_figure(many(clusters), list(range(clusters)))
        sizes[clusters] = {trace.marker.size for trace in figure.data if trace.meta == "selected"}
    assert sizes == {40: {11}, 200: {8}, 1000: {6}}


def test_hover_text_shows_tags_and_entities_as_they_are() -> None:
    shown = hover_text("a <b>bold</b> &lt; <a href='javascript:x'>y</a>")
    assert shown == "a &lt;b&gt;bold&lt;/b&gt; &amp;lt; &lt;a href='javascript:x'&gt;y&lt;/a&gt;"


def test_hover_text_is_broken_into_few_lines_of_printable_characters() -> None:
    lines = hover_text("word\u202e\u2028\x07 " * 200).split("<br>")
    assert len(lines) == 4
    assert max(map(len, lines)) <= 64
    assert lines[-1].endswith(" …")
    assert all(character.isprintable() for line in lines for character in line)


def test_hostile_prompts_are_harmless_in_map_and_portraits(make_mapped: MakeMapped) -> None:
    page = write_report(make_mapped(texts=[HOSTILE] * 30)).read_text(encoding="utf-8")
    assert "alert(" in page
    assert "<script>alert" not in page
    assert "<img" not in page
