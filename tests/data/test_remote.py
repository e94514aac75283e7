from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from divsel_ray.data import remote
from divsel_ray.data.inputs import find_inputs, fingerprint_inputs, source_names
from divsel_ray.data.readers import read_records
from divsel_ray.data.remote import RemoteFile, list_remote, open_bytes, size_of
from divsel_ray.errors import InputError
from tests.e2e.ray_head import free_ports

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(3000)]
NAMES = [
    "a.jsonl",
    "b b.jsonl.zst",
    "deep/er/c.parquet",
    "deep/d.csv.gz",
    ".hidden/x.jsonl",
    "_x.jsonl",
    "out.jsonl.divsel/p.jsonl",
    "README.md",
]
STORE = "divsel_ray.data.remote._filesystem"


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


class Stores:
    """Local folders as buckets; remembers what was asked of which address."""

    def __init__(self, folder: Path):
        self.roots, self._store = [], fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())

    def __call__(self, root):
        self.roots.append(root)
        return self._store


@pytest.fixture
def stores(tmp_path, monkeypatch):
    made = Stores(tmp_path)
    monkeypatch.setattr(STORE, made)
    return made


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def below(files, folder):
    return sorted(file.path.removeprefix(f"{folder}/") for file in files)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["README.md", "a.jsonl", "b b.jsonl.zst", "deep/d.csv.gz", "deep/er/c.parquet"]),
        ("/", ["README.md", "a.jsonl", "b b.jsonl.zst", "deep/d.csv.gz", "deep/er/c.parquet"]),
        ("/a.jsonl", ["a.jsonl"]),
        ("/b%20b.jsonl.zst", ["b b.jsonl.zst"]),
        ("/*.jsonl", ["a.jsonl"]),
        ("/?.jsonl", ["a.jsonl"]),
        ("/*/*", ["deep/d.csv.gz"]),
        ("/**/*.[pc]*", ["deep/d.csv.gz", "deep/er/c.parquet"]),
        ("/deep/**", ["deep/d.csv.gz", "deep/er/c.parquet"]),
        ("/deep/**/er/*", ["deep/er/c.parquet"]),
        ("/nothing/*", []),
        ("/d*", []),
    ],
)
def test_addresses_of_files_folders_and_globs_are_listed(folder, pattern, names):
    assert below(list_remote(folder.as_uri() + pattern), folder) == names


def test_a_remote_file_answers_like_a_path_and_goes_through_pickle(folder):
    [file] = list_remote(f"{folder.as_uri()}/deep/d.csv.gz")
    assert str(file) == f"file://{folder}/deep/d.csv.gz"
    assert file.name == "d.csv.gz"
    assert file.parts[-2:] == ("deep", "d.csv.gz")
    assert size_of(file) == len("deep/d.csv.gz")
    with open_bytes(pickle.loads(pickle.dumps(file))) as stream:
        assert stream.read() == b"deep/d.csv.gz"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("https://example.org/a.jsonl", r"https://example\.org/a\.jsonl: expected s3://BUCKET/PATH"),
        ("hdfs://host/a.jsonl", r"hdfs://host/a\.jsonl: expected s3://BUCKET/PATH"),
        ("file://relative/a.jsonl", "expected s3://BUCKET/PATH"),
        ("s3://", "s3://: expected s3://BUCKET/PATH"),
        ("file:///no/such/file.jsonl", r"file:///no/such/file\.jsonl: no such file or folder$"),
        ("file:///no/such/*.jsonl", r"contains no \.json, .* file$"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(reference, message):
    with pytest.raises(InputError, match=message):
        find_inputs([reference], "pool.data")


def test_a_bucket_is_asked_for_with_its_options_and_shown_without_credentials(stores, tmp_path):
    put(tmp_path / "bucket" / "rows" / "a?.jsonl", b"{}")
    for place in ("rows/a?.jsonl", "rows", "rows/?*.jsonl", "rows/*?region=eu-west-1"):
        assert find_inputs([f"s3://key:secret@bucket/{place}"], "pool.data")[0].path == "bucket/rows/a?.jsonl"
    [file] = list_remote("gs://anonymous@bucket/rows/*")
    assert str(file) == "gs://bucket/rows/a?.jsonl"
    assert stores.roots == [
        "s3://key:secret@bucket",
        "s3://key:secret@bucket",
        "s3://key:secret@bucket",
        "s3://key:secret@bucket?region=eu-west-1",
        "gs://anonymous@bucket?retry_limit_seconds=30",
    ]
    with pytest.raises(InputError) as raised:
        list_remote("s3://key:secret@bucket/none")
    assert "secret" not in str(raised.value)


def test_names_and_fingerprints_do_not_hold_the_bucket(stores, tmp_path):
    for bucket in ("one", "two"):
        put(tmp_path / bucket / "x" / "a.jsonl", b"1")
        put(tmp_path / bucket / "y" / "a.jsonl", b"2")
    first, second = find_inputs(["s3://one"], "pool.data"), find_inputs(["gs://two"], "pool.data")
    assert source_names(first) == source_names(second) == ["x/a.jsonl", "y/a.jsonl"]
    assert fingerprint_inputs(first, "pool.data") == fingerprint_inputs(second, "pool.data")


@pytest.mark.parametrize("error", [OSError("no route\nto host"), pa.ArrowInvalid("no such region")])
def test_a_store_that_does_not_answer_is_one_line(monkeypatch, error):
    def fail(root):
        raise error

    monkeypatch.setattr(STORE, fail)
    line = r"s3://bucket/a\.jsonl: cannot be read \(no [^\n]*\); check[^\n]*$"
    for call in (lambda: list_remote("s3://bucket/a.jsonl"), RemoteFile("s3://bucket", "bucket/a.jsonl", 1).open):
        with pytest.raises(InputError, match=rf"^{line}"):
            call()
    # What is listed for a job says which setting named it.
    with pytest.raises(InputError, match=rf"^pool\.data: {line}"):
        find_inputs(["s3://bucket/a.jsonl"], "pool.data")
    with pytest.raises(InputError, match=rf"^clean\.benchmarks: {line}"):
        find_inputs(["s3://bucket/a.jsonl"], "clean.benchmarks")


class Dropping:
    """A stream whose connection breaks after some bytes."""

    def __init__(self, data, left):
        self._stream, self._left = pa.BufferReader(data), left

    def readinto(self, buffer):
        self._left -= len(buffer)
        if self._left < 0:
            raise OSError("connection reset")
        return self._stream.readinto(buffer)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.parquet"])
def test_a_connection_that_breaks_is_not_taken_for_a_broken_file(monkeypatch, name):
    rows = [{"prompt": os.urandom(20).hex(), "completion": "x"} for _ in range(20_000)]
    data = encoded(name, rows)
    stream = remote._Stream(Dropping(data, len(data) // 2), "s3://bucket/a")
    monkeypatch.setattr(RemoteFile, "open", lambda self, random_access=False: stream)
    with pytest.raises(InputError, match=r"s3://bucket/a: cannot be read \(connection reset\)"):
        list(read_records(RemoteFile("s3://bucket", f"bucket/{name}", len(data))))


def encoded(name, rows):
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=1000)
        return sink.getvalue().to_pybytes()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if ".csv" in name:
        lines = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    sink = pa.BufferOutputStream()
    kind = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2])
    with pa.CompressedOutputStream(sink, kind) if kind else sink as stream:
        stream.write(lines.encode())
        stream.flush()
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.zst", "a.parquet"])
def test_every_kind_of_file_is_read_from_a_store(stores, tmp_path, name):
    put(tmp_path / "bucket" / name, encoded(name, ROWS))
    [file] = find_inputs([f"s3://bucket/{name}"], "pool.data")
    assert [record.value for record in read_records(file)] == ROWS


@pytest.fixture(scope="module")
def s3():
    """The address of a server that speaks S3, where one is installed."""
    pytest.importorskip("moto.server")
    [port] = free_ports(1)
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_a_bucket_of_s3_is_listed_and_read(s3):
    address = f"endpoint_override={s3}&scheme=http&allow_bucket_creation=true"
    store, _ = fs.FileSystem.from_uri(f"s3://key:secret@bucket?{address}")
    store.create_dir("bucket")
    for name in ("in/a b.jsonl.zst", "in/deep/c.parquet", "in/_x.jsonl"):
        with store.open_output_stream(f"bucket/{name}", compression=None) as stream:
            stream.write(encoded(name, ROWS))
    found = find_inputs([f"s3://key:secret@bucket/in?{address}"], "pool.data")
    assert [str(file) for file in found] == ["s3://bucket/in/a b.jsonl.zst", "s3://bucket/in/deep/c.parquet"]
    assert (
        find_inputs(
            [f"s3://key:secret@bucket/*/a b.*?{address}", f"s3://key:secret@bucket/in/**/*.parquet?{address}"], "pool.data"
        )
        == found
    )
    assert all([record.value for record in read_records(file)] == ROWS for file in found)
    assert len(fingerprint_inputs(found, "pool.data")) == 16
    with pytest.raises(InputError, match=r"s3://nosuch/a\.jsonl: (no such file|cannot be read)"):
        find_inputs([f"s3://key:secret@nosuch/a.jsonl?{address}"], "pool.data")
