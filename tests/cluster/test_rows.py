import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.cluster import rows
from divsel_ray.errors import InputError


def embedding(vectors, kind=None):
    kind = kind or pa.float16()
    dimension = len(vectors[0])
    flat = pa.array(np.asarray(vectors, kind.to_pandas_dtype()).ravel(), kind)
    return pa.FixedSizeListArray.from_arrays(flat, dimension)


def write(path, vectors, kind=None, row_group_size=None):
    ids = [f"{path.stem}-{i}" for i in range(len(vectors))]
    pq.write_table(pa.table({"row_id": ids, "embedding": embedding(vectors, kind)}), path, row_group_size=row_group_size)
    return str(path)


def test_partitions_together_hold_every_row_once_in_order(tmp_path):
    vectors = np.arange(46, dtype=np.float16).reshape(23, 2)
    paths = [write(tmp_path / f"{i}.parquet", part, row_group_size=3) for i, part in enumerate(np.split(vectors, [4, 5, 16]))]
    files = rows.check_files(paths)
    assert (files.rows, files.dimension) == (23, 2)
    for parts in (1, 2, 5, 23, 40):
        partitions = rows.partition(files, parts)
        assert len(partitions) == min(parts, 23)
        read = [rows.read(part) for part in partitions]
        assert (np.concatenate(read) == vectors).all()
        assert [part.first for part in partitions] == [0, *np.cumsum([len(r) for r in read])[:-1].tolist()]
        assert read[0].dtype == np.float16


def test_files_without_rows_are_passed_over(tmp_path):
    empty = tmp_path / "a.parquet"
    schema = pa.schema({"row_id": pa.string(), "embedding": pa.list_(pa.float16(), 2)})
    pq.write_table(schema.empty_table(), empty)
    files = rows.check_files([str(empty), write(tmp_path / "b.parquet", [[1, 2]])])
    (only,) = rows.partition(files, 3)
    assert rows.read(only).tolist() == [[1, 2]]


def test_float_and_double_are_read_as_float32(tmp_path):
    for kind in (pa.float32(), pa.float64()):
        files = rows.check_files([write(tmp_path / "a.parquet", [[0.5, 2.25]], kind)])
        (only,) = rows.partition(files, 1)
        assert rows.read(only).dtype == np.float32
        assert rows.read(only).tolist() == [[0.5, 2.25]]


def test_missing_vectors_and_values_are_read_as_nan():
    column = pa.array([[1, 2], None, [3, None], [5, 6]], pa.list_(pa.float16(), 2))
    matrix = rows.to_matrix(column)
    assert np.isnan(matrix).tolist() == [[False, False], [True, True], [False, True], [False, False]]
    assert matrix[3].tolist() == [5, 6]
    assert rows.to_matrix(column.slice(3)).tolist() == [[5, 6]]


def test_a_row_is_named_by_file_number_and_id(tmp_path):
    paths = [write(tmp_path / f"{name}.parquet", np.zeros((5, 2)), row_group_size=2) for name in "ab"]
    name = rows.name_row(rows.check_files(paths), 8)
    assert name == f"{paths[1]}: row 3 (row_id b-3)"


def test_folders_are_listed_in_name_order(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.parquet", [[1.0]])
    assert [path[-9:] for path in rows.list_files(tmp_path)] == ["a.parquet", "b.parquet", "c.parquet"]


def test_unusable_files_are_refused_in_one_line(tmp_path):
    good = write(tmp_path / "good.parquet", [[1.0, 2.0]])
    wide = write(tmp_path / "wide.parquet", [[1.0, 2.0, 3.0]])
    bare = str(tmp_path / "bare.parquet")
    pq.write_table(pa.table({"row_id": ["a"]}), bare)
    text = str(tmp_path / "text.parquet")
    pq.write_table(pa.table({"row_id": ["a"], "embedding": ["x"]}), text)
    broken = tmp_path / "broken.parquet"
    broken.write_text("no")
    for paths, said in (
        ([good, wide], "wide.parquet: vectors have 3 dimensions"),
        ([bare], "no column embedding"),
        ([text], "embedding is string"),
        ([str(broken)], "not a Parquet file"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            rows.check_files(paths)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        rows.list_files([good, str(tmp_path / "gone.parquet")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Parquet file"):
        rows.list_files(tmp_path / "empty")
