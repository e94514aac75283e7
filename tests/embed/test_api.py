"""Embeddings from a server: both protocols, retries, the limit of money, and nothing paid for twice."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from divsel_ray.config import EmbedApiConfig, EmbedConfig
from divsel_ray.embed.api import ApiEncoder, cut_text
from divsel_ray.embed.stage import embed_pool
from divsel_ray.errors import InputError, JobError
from divsel_ray.progress import Silent
from tests.embed.embed_server import Reply, embed_server, vector_of
from tests.models.tiny import WORDS, save_encoder

TEXTS = [f"{word} {other}" for word, other in pairwise(WORDS)][:10]
KEYS = [f"{at:032x}" for at in range(len(TEXTS))]
PRICE = 1e6
"""A token costs 1; each text has two, and at most eleven bytes."""


pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def settings(model):
    def make(url="http://127.0.0.1:1/v1", window=None, **values):
        api = EmbedApiConfig(**{"model": "m", "url": url, "retries": 2, "timeout_s": 5, "batch_rows": 4, **values})
        return EmbedConfig(model=model, api=api, window=window)

    return make


def encode(config, folder=None, texts=TEXTS, keys=KEYS):
    return ApiEncoder(config, config.api, folder).encode(texts, keys)


def units(texts):
    vectors = np.array([vector_of(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("protocol", "path"), [("openai", "/v1/embeddings"), ("cohere", "/v1/embed")])
def test_both_protocols_give_each_text_its_own_unit_vector(settings, monkeypatch, protocol, path):
    monkeypatch.setenv("MY_KEY", "secret-123")
    with embed_server() as server:
        found = encode(settings(server.url, protocol=protocol, key_variable="MY_KEY"))
    assert found.dtype == np.float16
    assert np.abs(found - units(TEXTS)).max() < 1e-3
    assert set(server.paths) == {path}
    assert set(server.keys) == {"Bearer secret-123"}
    assert [len(body.get("input", body.get("texts"))) for body in server.bodies] in ([4, 4, 2], [4, 2, 4], [2, 4, 4])


def test_what_a_request_says_is_what_the_protocols_ask_for(settings):
    with embed_server() as server:
        encode(settings(server.url, dimensions=3, batch_rows=96))
        encode(settings(server.url, protocol="cohere", batch_rows=96))
    openai, cohere = server.bodies
    assert {name: value for name, value in openai.items() if name != "input"} == {
        "model": "m",
        "encoding_format": "float",
        "dimensions": 3,
    }
    assert {name: value for name, value in cohere.items() if name != "texts"} == {
        "model": "m",
        "input_type": "clustering",
        "embedding_types": ["float"],
        "truncate": "END",
    }


def test_vectors_do_not_depend_on_the_order_of_texts(settings):
    with embed_server() as server:
        forward = encode(settings(server.url))
        backward = encode(settings(server.url), texts=TEXTS[::-1], keys=KEYS[::-1])
    assert np.array_equal(forward, backward[::-1])
    assert sorted(map(str, server.bodies[:3])) == sorted(map(str, server.bodies[3:]))


def test_a_long_text_is_cut_and_its_pieces_count_by_their_tokens(settings):
    text = " ".join(["red"] * 8 + ["green"] * 2)
    with embed_server() as server:
        found = encode(settings(server.url, window=8), texts=[text], keys=["a"])
    assert sorted(server.texts) == ["green green", "red red red red red red red red"]
    mean = (8 * np.array(vector_of("red red red red red red red red")) + 2 * np.array(vector_of("green green"))) / 10
    assert np.abs(found[0] - mean / np.linalg.norm(mean)).max() < 1e-3


def test_pieces_hold_the_first_tokens_of_a_text_and_an_empty_text_is_one(model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = [("one two", 2), ("three four", 2), ("five", 1)]
    assert cut_text(tokenizer, "one two three four five six", window=2, max_tokens=5) == pieces
    assert cut_text(tokenizer, "", window=2, max_tokens=5) == [(".", 0)]


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=429, headers={"Retry-After": "0"}),
        Reply(status=503),
        Reply(body=b"{not json"),
        Reply(body=b'{"data": [{"index": 0, "embedding": [1, 2]}]}'),
        Reply(body=b'{"data": null}'),
        Reply(delay=4.0),
    ],
    ids=["429", "503", "broken JSON", "too few vectors", "no vectors", "too slow"],
)
def test_a_busy_or_broken_server_is_asked_again(settings, bad):
    with embed_server(lambda number: bad if number == 0 else Reply()) as server:
        found = encode(settings(server.url, timeout_s=2 if bad.delay else 60))
    assert np.abs(found - units(TEXTS)).max() < 1e-3
    assert len(server.bodies) == 4


def test_a_server_that_is_gone_or_refuses_every_text_ends_the_job_in_one_line(settings):
    with embed_server(lambda _: Reply(status=500)) as server, pytest.raises(JobError, match=r"does not answer .*run the same"):
        encode(settings(server.url, retries=1))
    refusal = Reply(status=400, body=b"wrong model")
    with embed_server(lambda _: refusal) as server, pytest.raises(JobError, match=r"refuses every text .*HTTP 400: wrong model"):
        encode(settings(server.url))


def refusing(text):
    """A server that refuses every request with this text in it."""

    @contextlib.contextmanager
    def start():
        def reply(number):
            return Reply(status=400, body=b"too long") if text in server.bodies[number]["input"] else Reply()

        with embed_server(reply) as server:
            yield server

    return start()


def test_a_text_that_the_server_refuses_costs_its_row_alone(settings, tmp_path):
    with refusing(TEXTS[2]) as server:
        config = settings(server.url)
        encoder = ApiEncoder(config, config.api, tmp_path / "answers")
        found = encoder.encode(TEXTS, KEYS)
        assert np.isnan(found[2]).all()
        assert np.abs(np.delete(found, 2, axis=0) - np.delete(units(TEXTS), 2, axis=0)).max() < 1e-3
        assert encoder.answers.refused == {KEYS[2]: "HTTP 400: too long"}
        # Who comes after a kill knows it still.
        assert ApiEncoder(config, config.api, tmp_path / "answers").answers.refused == {KEYS[2]: "HTTP 400: too long"}


def test_the_stage_leaves_out_rows_that_the_server_refuses_and_lists_them(settings, cluster, tmp_path):
    pool = tmp_path / "part-00000.parquet"
    pq.write_table(pa.table({"row_id": KEYS, "prompt": TEXTS, "n_tokens": pa.array([2] * len(TEXTS), pa.int32())}), pool)
    with refusing(TEXTS[5]) as server:
        config = settings(server.url).model_copy(update={"text": "prompt"})
        facts = embed_pool([str(pool)], config, tmp_path / "out", cluster, Silent())
    assert (facts["rows"], facts["refused"]) == (len(TEXTS) - 1, 1)
    written = pq.read_table(tmp_path / "out" / pool.name)
    assert written["row_id"].to_pylist() == [key for key in KEYS if key != KEYS[5]]
    [line] = (tmp_path / "out" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line) == {"row_id": KEYS[5], "reason": "HTTP 400: too long"}


def test_a_missing_key_is_named_unless_the_server_is_a_local_one(settings, monkeypatch):
    monkeypatch.delenv("CO_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"embed\.api: the environment variable CO_API_KEY is not set"):
        encode(settings("", protocol="cohere"))
    with embed_server() as server:
        encode(settings(server.url))
    assert server.keys == [None] * 3


def test_no_more_requests_are_under_way_than_allowed(settings):
    with embed_server(lambda _: Reply(delay=0.3)) as server:
        encode(settings(server.url, concurrency=2, batch_rows=1))
    assert server.busiest == 2


def test_a_batch_that_was_paid_for_is_never_paid_for_again(settings, tmp_path):
    with embed_server() as server:
        first = encode(settings(server.url), tmp_path)
        sent = len(server.bodies)
        again = ApiEncoder(settings(server.url), settings(server.url).api, tmp_path)
        assert np.array_equal(again.encode(TEXTS, KEYS), first)
        assert len(server.bodies) == sent == 3
        # As a kill leaves it: one batch was not kept yet.
        next(iter(sorted(tmp_path.glob("*.npy")))).unlink()
        again.encode(TEXTS, KEYS)
    assert len(server.bodies) == 4
    assert (again.answers.spent.requests, again.answers.spent.tokens) == (4, sum(len(text.split()) for text in server.texts))


def test_the_spending_limit_is_never_exceeded_and_a_higher_one_goes_on(settings, tmp_path):
    with embed_server() as server:
        limits = {"price": PRICE, "concurrency": 3, "batch_rows": 1}
        with pytest.raises(JobError, match=r"embed\.api: the next request could exceed max_cost 14; .* raise max_cost"):
            encode(settings(server.url, **limits, max_cost=14), tmp_path)
        paid = len(server.bodies)
        assert 0 < 2 * paid <= 14
        encode(settings(server.url, **limits, max_cost=100), tmp_path)
    assert len(server.bodies) == len(TEXTS)


@pytest.mark.parametrize(
    "values", [{"url": "ftp://x"}, {"url": "https://me:pass@x/v1"}, {"key_variable": "sk-abc"}, {"max_cost": 1.0}]
)
def test_settings_that_cannot_work_or_hold_a_key_are_refused(values):
    with pytest.raises(ValidationError):
        EmbedApiConfig(model="m", **values)


def write_pool(folder, sizes):
    files, words = [], iter(f"{one} {other}" for one in WORDS for other in WORDS)
    folder.mkdir()
    for part, size in enumerate(sizes):
        ids = [f"{part:02x}{at:030x}" for at in range(size)]
        columns = {"row_id": pa.array(ids, pa.string()), "prompt": pa.array([next(words) for _ in ids], pa.string())}
        columns |= {"completion": pa.array(["fine"] * size, pa.string()), "n_tokens": pa.array([3] * size, pa.int64())}
        files.append(str(folder / f"part-{part}.parquet"))
        pq.write_table(pa.table(columns), files[-1])
    return files


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_the_stage_says_the_cost_counts_it_and_asks_only_for_what_is_missing(settings, cluster, tmp_path):
    files, progress = write_pool(tmp_path / "pool", [0, 5, 3]), Notes()
    with embed_server() as server:
        config = settings(server.url, price=PRICE, max_cost=1000)
        facts = embed_pool(files, config, tmp_path / "out", cluster, progress)
        assert facts == {"rows": 8, "dimension": 4, "actors": 1, "refused": 0, "requests": 3, "tokens": 24, "cost": 24.0}
        [said] = progress.notes
        assert said == f"m at {server.url}: 8 rows to embed, about 24 tokens, estimated cost 24, the limit is 1000"
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {"part-0.parquet", "part-1.parquet", "part-2.parquet"}
        assert pq.read_schema(tmp_path / "out" / "part-0.parquet").field("embedding").type == pa.list_(pa.float16(), 4)
        (tmp_path / "out" / "part-2.parquet").unlink()
        asked = len(server.bodies)
        embed_pool(files, config, tmp_path / "out", cluster, progress)
        assert len(server.bodies) == asked + 1


def test_rows_whose_tokens_were_never_counted_are_taken_for_as_long_as_they_can_be(settings, cluster, tmp_path):
    [file] = write_pool(tmp_path / "pool", [5])
    pq.write_table(pq.read_table(file).drop_columns(["n_tokens"]), file)
    progress = Notes()
    with embed_server() as server:
        config = settings(server.url).model_copy(update={"max_tokens": 10})
        facts = embed_pool([file], config, tmp_path / "out", cluster, progress)
    assert (facts["rows"], facts["tokens"]) == (5, 15)
    [said] = progress.notes
    assert "5 rows to embed, about 50 tokens" in said


def test_a_stage_that_would_cost_more_than_the_limit_is_refused_before_it_begins(settings, cluster, tmp_path):
    files = write_pool(tmp_path / "pool", [5])
    with embed_server() as server:
        config = settings(server.url, price=PRICE, max_cost=10)
        with pytest.raises(InputError, match="about 15 tokens would cost about 15, above max_cost 10"):
            embed_pool(files, config, tmp_path / "out", cluster, Silent())
    assert json.dumps(server.bodies) == "[]"
