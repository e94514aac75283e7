from __future__ import annotations

import pytest

from divsel_ray.data.inputs import find_inputs, fingerprint_inputs, source_names
from divsel_ray.errors import InputError


@pytest.fixture
def files(tmp_path):
    names = ["b.jsonl", "a.json", "deep/c.parquet", "d.json.gz", "README.md", ".hidden/x.jsonl", "_facts.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def relative(paths, folder):
    return [str(path.relative_to(folder)) for path in paths]


def test_a_folder_gives_its_readable_files_sorted(files):
    assert relative(find_inputs([str(files)], "pool.data"), files) == ["a.json", "b.jsonl", "d.json.gz", "deep/c.parquet"]


def test_a_glob_gives_the_readable_files_it_matches(files):
    assert relative(find_inputs([f"{files}/*"], "pool.data"), files) == ["a.json", "b.jsonl", "d.json.gz"]
    assert relative(find_inputs([f"{files}/**/*.parquet"], "pool.data"), files) == ["deep/c.parquet"]


def test_a_glob_leaves_out_hidden_and_work_folders_unless_they_are_named_before_it(files):
    for name in ("out.jsonl.divsel/pool/part.jsonl", "_old/deep/x.jsonl", "deep/d.jsonl"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(name)
    assert relative(find_inputs([f"{files}/**/*.jsonl"], "pool.data"), files) == ["b.jsonl", "deep/d.jsonl"]
    assert relative(find_inputs([f"{files}/*/*.jsonl"], "pool.data"), files) == ["deep/d.jsonl"]
    assert relative(find_inputs([f"{files}/_old/**/*.jsonl"], "pool.data"), files) == ["_old/deep/x.jsonl"]
    assert relative(find_inputs([f"{files}/.hidden/*"], "pool.data"), files) == [".hidden/x.jsonl"]


def test_a_file_named_twice_is_read_once(files):
    (files / "link.jsonl").symlink_to(files / "b.jsonl")
    found = find_inputs([f"{files}/link.jsonl", f"{files}/b.jsonl", f"{files}/./b.jsonl", f"{files}/*.jsonl"], "pool.data")
    assert relative(found, files) == ["b.jsonl"]


def test_a_relative_path_becomes_absolute(files, monkeypatch):
    monkeypatch.chdir(files)
    assert find_inputs(["b.jsonl"], "pool.data") == [files / "b.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(files):
    (files / "x[1].json").write_text("")
    assert relative(find_inputs([f"{files}/x[1].json"], "pool.data"), files) == ["x[1].json"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("missing.jsonl", r"missing\.jsonl: no such file or folder"),
        ("README.md", r"README\.md: unknown suffix \.md; expected \.json"),
        ("*.md", r"\*\.md: contains no \.json, .* file \(only \.md\)"),
        ("nothing/*.json", r"nothing/\*\.json: contains no \.json"),
        ("owner/name", r"owner/name: no such file or folder; for a Hugging Face data set use hf:owner/name$"),
        ("owner/name.jsonl", r"owner/name\.jsonl: no such file or folder; expected a file, a folder"),
    ],
)
def test_what_cannot_be_read_is_named(files, monkeypatch, reference, message):
    monkeypatch.chdir(files)
    with pytest.raises(InputError, match=message):
        find_inputs(["b.jsonl", reference], "pool.data")


def test_a_file_that_cannot_be_read_is_named(files):
    paths = find_inputs([f"{files}/b.jsonl"], "pool.data")
    (files / "b.jsonl").unlink()
    with pytest.raises(InputError, match=r"pool\.data: .*b\.jsonl: cannot be read \(No such file or directory\)$"):
        fingerprint_inputs(paths, "pool.data")


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(InputError, match="package:no-such-package-here"):
        find_inputs(["package:no-such-package-here"], "pool.data")


def test_no_data_is_refused():
    with pytest.raises(InputError, match=r"pool\.data"):
        find_inputs([], "pool.data")


def test_the_setting_that_names_the_files_is_in_the_message(files):
    with pytest.raises(InputError, match=r"^PREFS: missing: no such file"):
        find_inputs(["missing"], "PREFS")
    with pytest.raises(InputError, match=r"^--embeddings: .*gone\.jsonl: cannot be read"):
        fingerprint_inputs([files / "gone.jsonl"], "--embeddings")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / name for name in ("a/x/t.json", "b/x/t.json", "b/y/t.json", "u.json")]
    assert source_names(paths) == ["a/x/t.json", "b/x/t.json", "y/t.json", "u.json"]


def test_files_behind_addresses_are_named_and_fingerprinted_like_others(files):
    here = find_inputs([str(files)], "pool.data")
    there = find_inputs([files.as_uri()], "pool.data")
    assert source_names(there) == source_names(here) == ["a.json", "b.jsonl", "d.json.gz", "c.parquet"]
    assert [file.name for file in there] == [file.name for file in here]
    assert fingerprint_inputs(there, "pool.data") == fingerprint_inputs(here, "pool.data")


def test_local_and_remote_files_of_one_name_are_told_apart(files):
    names = source_names(find_inputs([f"{files}/b.jsonl", (files / "b.jsonl").as_uri()], "pool.data"))
    assert len({*names}) == 2


def test_the_fingerprint_follows_content_and_names_not_places(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(b"0123")
        (folder / "b.jsonl").write_bytes(b"4567")
    here = fingerprint_inputs([first / "a.jsonl", first / "b.jsonl"], "pool.data")
    assert here == fingerprint_inputs([second / "b.jsonl", second / "a.jsonl"], "pool.data")
    (second / "b.jsonl").write_bytes(b"4568")
    changed = fingerprint_inputs([second / "a.jsonl", second / "b.jsonl"], "pool.data")
    (first / "b.jsonl").rename(first / "c.jsonl")
    renamed = fingerprint_inputs([first / "a.jsonl", first / "c.jsonl"], "pool.data")
    assert len({here, changed, renamed}) == 3
