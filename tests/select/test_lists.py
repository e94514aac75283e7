"""Lists of row ids that users name."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divsel_ray.errors import InputError
from divsel_ray.select.lists import find_ids, read_ids
from tests.select.drawing import row_ids

IDS = row_ids(6)


def test_ids_are_read_from_text_json_lines_and_parquet(tmp_path):
    texts = [value.decode() for value in IDS[:3]]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"row_id": text, "messages": []}) + "\n" for text in texts))
    pq.write_table(pa.table({"row_id": texts}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert read_ids(tmp_path / name).tolist() == IDS[:3].tolist()


def test_what_is_no_row_id_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_text(f"{IDS[0].decode()}\nrow 7\n")
    with pytest.raises(InputError, match=r"a\.txt line 2: 'row 7' is not a row id; expected 32 hex digits"):
        read_ids(tmp_path / "a.txt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.txt: no such file"):
        read_ids(tmp_path / "gone.txt")


def test_positions_are_found_and_unknown_ids_refused_only_where_they_must_be_there(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(value.decode() for value in (IDS[4], IDS[1], IDS[5])))
    pool = IDS[:5]
    assert find_ids(pool, str(path), "exclude", required=False).tolist() == [1, 4]
    with pytest.raises(InputError, match=r"select.include: .*1 of 3 row ids are not in the pool, the first is"):
        find_ids(pool, str(path), "include", required=True)
    assert find_ids(pool, None, "include", required=True).tolist() == []
    assert find_ids(np.array([], "S32"), str(path), "exclude", required=False).tolist() == []
