from __future__ import annotations

import shutil

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from divsel_ray.data.hub import HubDataset, parse_reference
from divsel_ray.data.inputs import find_inputs, source_names
from divsel_ray.errors import InputError

FILES = [
    "README.md",
    "data/train-0.parquet",
    "data/train-1.parquet",
    "data/test-0.parquet",
    "dataset_infos.json",
    "sub/dataset_info.json",
    "x.jsonl",
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one data set, o/n; the calls it was asked."""
    calls = []

    def snapshot_download(name, *, repo_type, revision, allow_patterns, ignore_patterns):
        calls.append((name, repo_type, revision))
        if name != "o/n":
            response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
            raise errors.RepositoryNotFoundError("404\nmore", response=response)
        folder = tmp_path / "snapshot"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in filter_repo_objects(FILES, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(file)
        (folder / "dataset_infos.json").write_text("left by another program")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize(
    ("reference", "dataset"),
    [
        ("hf:o/n", HubDataset("o/n", None, "")),
        ("hf:o/n.x-y@v1.0", HubDataset("o/n.x-y", "v1.0", "")),
        ("hf:o/n/data/*.parquet", HubDataset("o/n", None, "data/*.parquet")),
        ("hf:o/n@refs/convert/parquet/default/train", HubDataset("o/n", "refs/convert/parquet", "default/train")),
    ],
)
def test_a_reference_has_name_revision_and_path(reference, dataset):
    assert parse_reference(reference) == dataset


@pytest.mark.parametrize("reference", ["hf:", "hf:name", "hf:o/n@", "hf:o n/x", "hf://datasets/o/n"])
def test_a_reference_of_another_shape_is_refused(reference):
    with pytest.raises(InputError, match=r"expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/PATH"):
        find_inputs([reference], "pool.data")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["test-0.parquet", "train-0.parquet", "train-1.parquet", "x.jsonl"]),
        ("/data", ["test-0.parquet", "train-0.parquet", "train-1.parquet"]),
        ("/data/train-*.parquet", ["train-0.parquet", "train-1.parquet"]),
        ("/**/*.jsonl", ["x.jsonl"]),
        ("/x.jsonl", ["x.jsonl"]),
    ],
)
def test_only_data_files_below_the_path_are_fetched_and_read(hub, path, names):
    assert source_names(find_inputs([f"hf:o/n@main{path}"], "pool.data")) == names
    assert hub == [("o/n", "dataset", "main")]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:o/other", "hf:o/other: no such data set on the Hugging Face hub, or it is private; .* HF_TOKEN$"),
        ("hf:o/n/README.md", r"hf:o/n/README\.md: contains no .* file \(only \.md\)"),
        ("hf:o/n/none.jsonl", r"hf:o/n/none\.jsonl: no such file or folder"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, reference, message):
    with pytest.raises(InputError, match=message):
        find_inputs([reference], "pool.data")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached and the data set is not in the local cache"),
        (errors.HFValidationError("bad name\nmore"), "hf:o/n: bad name$"),
        (httpx.ConnectError("refused"), "hf:o/n: refused$"),
        (OSError("disk full"), "hf:o/n: disk full$"),
    ],
)
def test_a_download_that_fails_is_one_line(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=message):
        find_inputs(["hf:o/n"], "pool.data")
