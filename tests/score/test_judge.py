from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from divsel_ray.config import JudgeConfig
from divsel_ray.errors import InputError, JobError
from divsel_ray.models import api_client
from divsel_ray.models.spending import Ledger
from divsel_ray.score import chat_client, judge
from divsel_ray.score.judge import Judge, parse_rating, read_template, worst_cost, write_question
from divsel_ray.score.scorer import Exchange
from tests.score.chat_server import Reply, chat_server

PRICES = {"prompt_price": 1000.0, "output_price": 10_000.0}
"""A request of 100 prompt and 10 output tokens costs 0.2."""
COST = 0.2
TEMPLATE = "Q {prompt} A {completion}"


pytestmark = pytest.mark.usefixtures("no_waiting")


def settings(url: str = "http://127.0.0.1:1/v1", **values) -> JudgeConfig:
    return JudgeConfig(**{"model": "m", "url": url, "retries": 2, "timeout_s": 5, **values})


def rows(count: int) -> list[Exchange]:
    return [Exchange(f"r{at}", [{"role": "user", "content": f"prompt {at}"}], f"text {at}") for at in range(count)]


def number_of(question: str) -> int:
    return int(re.search(r"prompt (\d+)", question)[1])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Rating: 7", 7),
        ("  rating: 7.5 \n", 7.5),
        ("It is good.\n\nRating: 10", 10),
        ("8", 8),
        ("8.", 8),
        ("Rating: 11", None),
        ("Rating: 0.9", None),
        ("Rating: -7", None),
        ("Rating: 7/10", 7),
        ("**Rating: 7.5 / 10**", 7.5),
        ("Rating: 3/5", None),
        ("Rating: seven", None),
        ("Rating: 7\nRating: because", None),
        ("between 6 and 7", None),
        ("nan", None),
        ("", None),
    ],
)
def test_a_rating_is_a_number_in_range_on_the_last_line_and_nothing_else(text, value):
    assert parse_rating(text, settings()) == value


def test_the_question_holds_prompt_and_completion_as_they_are():
    row = Exchange("a", [{"role": "user", "content": "What is {completion}?"}], 'A {prompt} in "braces" {x}')
    assert write_question(TEMPLATE, row, settings(), 100) == 'Q What is {completion}? A A {prompt} in "braces" {x}'
    shipped = write_question(read_template(settings(lowest=0, highest=5)), row, settings(lowest=0, highest=5), 100)
    assert "What is {completion}?" in shipped
    assert "from 0 (useless or wrong) to 5" in shipped


def test_a_long_row_loses_the_start_of_its_prompt_and_the_end_of_its_completion():
    row = Exchange("a", [{"role": "user", "content": "p" * 500 + "END"}], "START" + "c" * 500)
    question = write_question(TEMPLATE, row, settings(), 25)  # 100 characters
    assert len(question) == 100 + len("Q  A ")
    assert "END A START" in question


@pytest.mark.parametrize("text", ["only {prompt}", "only {completion}"])
def test_a_template_without_a_place_is_refused(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=r"^judge\.template: .*lacks the placeholder"):
        read_template(settings(template=str(tmp_path / "t.txt")))
    with pytest.raises(InputError, match="no such file"):
        read_template(settings(template=str(tmp_path / "none.txt")))


def test_every_row_gets_its_own_rating_and_what_it_took():
    with chat_server(lambda question, _: Reply(f"Rating: {number_of(question) + 1}")) as server:
        scorer = Judge(settings(server.url, max_output_tokens=9), TEMPLATE, 100)
        assert scorer.score(rows(9)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert scorer.signals["requests"].tolist() == [1] * 9
    assert scorer.signals["prompt_tokens"].tolist() == [100] * 9
    assert scorer.signals["output_tokens"].tolist() == [10] * 9
    assert set(server.paths) == {"/v1/chat/completions"}
    assert server.keys == [None] * 9
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.bodies} == {("m", 0, 9)}


def test_an_answer_without_a_rating_is_asked_once_more_and_then_missing():
    texts = {0: ["great!", "Rating: 3"], 1: ["great!", "great!", "Rating: 3"], 2: ["Rating: 5"]}
    with chat_server(lambda question, before: Reply(texts[number_of(question)][before])) as server:
        scorer = Judge(settings(server.url), TEMPLATE, 100)
        scores = scorer.score(rows(3))
    assert scores[[0, 2]].tolist() == [3, 5]
    assert np.isnan(scores[1])
    assert scorer.signals["requests"].tolist() == [2, 2, 1]
    assert scorer.signals["failed"].tolist() == [0, 0, 0]
    assert "row r1: no rating" in scorer.problem


@pytest.mark.parametrize(
    "bad",
    [
        Reply(status=429),
        Reply(status=503),
        Reply(body=b"{not json"),
        Reply(body=b"[]"),
        Reply(body=b'{"choices": []}'),
        Reply(delay=4.0),
    ],
    ids=["429", "503", "broken JSON", "a list", "no choice", "too slow"],
)
def test_a_busy_or_broken_server_is_asked_again(bad):
    with chat_server(lambda _, before: bad if before == 0 else Reply("Rating: 4")) as server:
        scorer = Judge(settings(server.url, timeout_s=2 if bad.delay else 60), TEMPLATE, 100)
        assert scorer.score(rows(2)).tolist() == [4, 4]
    assert scorer.signals["requests"].tolist() == [2, 2]


def test_the_server_says_how_long_to_wait_else_the_wait_doubles_with_jitter(monkeypatch):
    monkeypatch.setattr(api_client, "_FIRST_WAIT", 1.0)
    waits: list[float] = []
    client = chat_client.ChatClient(settings(), waits.append)
    client.wait(0, 17.0)
    client.wait(3, None)
    assert waits[0] == 17
    assert 4 <= waits[1] <= 12
    assert api_client._delay("12") == 12
    assert api_client._delay("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert api_client._delay("soon") is None


def test_a_row_that_the_server_refuses_or_never_answers_is_missing_and_the_others_are_rated():
    replies = {0: Reply(status=400, body=b"too long"), 1: Reply(status=500), 2: Reply("Rating: 6")}
    with chat_server(lambda question, _: replies[number_of(question)]) as server:
        scorer = Judge(settings(server.url), TEMPLATE, 100)
        scores = scorer.score(rows(3))
    assert np.isnan(scores[:2]).all()
    assert scores[2] == 6
    assert scorer.signals["failed"].tolist() == [1, 1, 0]
    assert scorer.signals["requests"].tolist() == [1, 3, 1]
    assert "HTTP 400: too long" in scorer.problem


def test_a_server_that_is_gone_ends_the_job_and_not_every_row_of_it():
    with chat_server(lambda *_: Reply(status=500)) as server:
        with pytest.raises(JobError, match=r"did not answer for 20 consecutive rows .*run the same command"):
            Judge(settings(server.url, retries=0, concurrency=2), TEMPLATE, 100).score(rows(200))
        assert len(server.questions) < 30


def test_answers_without_a_rating_end_the_job_before_every_row_is_paid_for():
    with chat_server(lambda *_: Reply("I would give it an eight.")) as server:
        with pytest.raises(InputError, match=r"none of the first 20 answers ends with a line .*give it an eight"):
            Judge(settings(server.url, concurrency=2), TEMPLATE, 100).score(rows(300))
        assert len(server.questions) <= 2 * 22


def test_a_few_answers_without_a_rating_are_rows_without_one():
    with chat_server(lambda question, _: Reply("no idea" if number_of(question) else "Rating: 6")) as server:
        scores = Judge(settings(server.url, concurrency=1), TEMPLATE, 100).score(rows(30))
    assert scores[0] == 6
    assert np.isnan(scores[1:]).all()


def test_a_server_that_refuses_every_request_is_told_from_one_that_is_gone():
    with chat_server(lambda *_: Reply(status=400, body=b"use max_completion_tokens")) as server:
        with pytest.raises(InputError, match=r"refuses every request \(HTTP 400: use max_completion_tokens\); see limit_field"):
            Judge(settings(server.url, concurrency=2), TEMPLATE, 100).score(rows(200))
        assert len(server.questions) < 30


def test_a_request_names_its_limit_and_temperature_as_the_server_wants_them():
    with chat_server(lambda *_: Reply()) as server:
        Judge(settings(server.url), TEMPLATE, 100).score(rows(1))
        other = settings(server.url, limit_field="max_completion_tokens", max_output_tokens=500, temperature=None)
        Judge(other, TEMPLATE, 100).score(rows(1))
    usual, reasoning = server.bodies
    assert (usual["max_tokens"], usual["temperature"]) == (16, 0)
    assert reasoning["max_completion_tokens"] == 500
    assert not {"max_tokens", "temperature"} & set(reasoning)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "refuses the key in MY_KEY"), (404, "no such model"), (302, "no such model")]
)
def test_a_wrong_key_model_or_address_is_one_clear_line_without_the_key(monkeypatch, status, message):
    monkeypatch.setenv("MY_KEY", "secret-123")
    elsewhere = Reply(status=status, body=b"not for secret-123", headers={"Location": "http://127.0.0.1:1/"})
    with (
        chat_server(lambda *_: elsewhere) as server,
        pytest.raises(InputError, match=message) as caught,
    ):
        Judge(settings(server.url, key_variable="MY_KEY"), TEMPLATE, 100).score(rows(1))
    assert server.keys == ["Bearer secret-123"]
    assert "secret" not in str(caught.value)


def test_a_missing_key_is_named_unless_the_server_is_a_local_one(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="environment variable MY_KEY is not set"):
        Judge(settings("https://example.org/v1", key_variable="MY_KEY"), TEMPLATE, 100)
    assert api_client.find_key(settings("http://judge:8000/v1", key_variable="MY_KEY"), "judge") is None


def test_no_more_requests_are_under_way_than_allowed():
    with chat_server(lambda *_: Reply(delay=0.3)) as server:
        Judge(settings(server.url, concurrency=3), TEMPLATE, 100).score(rows(20))
    assert server.busiest == 3


def test_a_rating_that_was_paid_for_is_never_paid_for_again(tmp_path):
    with chat_server(lambda question, _: Reply(f"Rating: {number_of(question) + 1}")) as server:
        first = Judge(settings(server.url), TEMPLATE, 100, tmp_path).score(rows(6))
        (journal,) = tmp_path.iterdir()
        lines = journal.read_text().splitlines()
        # As a kill leaves it: two rows, and half of a third.
        journal.write_text("\n".join([*lines[:3], lines[3][:20]]))
        kept = {json.loads(line)["row_id"] for line in lines[:3] if line}
        asked = len(server.questions)
        scorer = Judge(settings(server.url), TEMPLATE, 100, tmp_path)
        assert scorer.score(rows(6)).tolist() == first.tolist()
        assert len(kept) == 2
        assert {f"r{number_of(question)}" for question in server.questions[asked:]} == {f"r{at}" for at in range(6)} - kept
        assert scorer.signals["requests"].tolist() == [1] * 6
        assert len(server.questions) == asked + 4


def test_another_question_does_not_take_the_ratings_of_this_one(tmp_path):
    with chat_server(lambda *_: Reply()) as server:
        for template in (TEMPLATE, f"{TEMPLATE}!"):
            Judge(settings(server.url), template, 100, tmp_path).score(rows(2))
    assert len(server.questions) == 4


def test_the_spending_limit_is_never_exceeded_and_a_higher_one_goes_on(tmp_path):
    # A request can cost at most (bytes + 64) prompt tokens and 16 output tokens: 0.247 with these prices.
    with chat_server(lambda *_: Reply()) as server:
        limited = settings(server.url, **PRICES, max_cost=1.0, concurrency=4)
        with pytest.raises(JobError, match=r"could exceed max_cost 1; 0\.8 is spent.*raise max_cost"):
            Judge(limited, TEMPLATE, 100, tmp_path).score(rows(9))
        assert len(server.questions) == 4
        with pytest.raises(JobError, match="could exceed max_cost 1"):
            Judge(limited, TEMPLATE, 100, tmp_path).score(rows(9))
        assert len(server.questions) == 4
        more = Judge(limited.model_copy(update={"max_cost": 10.0}), TEMPLATE, 100, tmp_path)
        assert np.isfinite(more.score(rows(9))).all()
    assert len(server.questions) == 9
    assert judge.spent_before(limited, tmp_path) == pytest.approx(9 * COST)


def test_requests_under_way_count_against_the_limit_until_they_settle():
    config = settings(**PRICES, max_cost=0.5, max_output_tokens=1)
    ledger, worst = Ledger("judge", config.max_cost), worst_cost(config, "x" * 36)  # 100 prompt tokens and 1 output token
    assert worst == pytest.approx(0.11)
    for one in [ledger.reserve(worst) for _ in range(4)]:
        ledger.settle(one, 0.11)
    with pytest.raises(JobError, match=r"0\.44 is spent"):
        ledger.reserve(worst)


def test_tokens_that_the_server_does_not_count_are_estimated():
    with chat_server(lambda *_: Reply(prompt_tokens=None)) as server:
        scorer = Judge(settings(server.url, max_output_tokens=5), "{prompt}{completion}....", 100)
        scorer.score(rows(1))
    assert scorer.signals["prompt_tokens"].tolist() == [5]  # "prompt 0text 0....": 18 bytes
    assert scorer.signals["output_tokens"].tolist() == [5]


@pytest.mark.parametrize(
    "values",
    [
        {"url": "ftp://x"},
        {"url": "https://me:pass@x/v1"},
        {"key_variable": "sk-abc"},
        {"max_cost": 1.0},
        {"lowest": 5, "highest": 5},
    ],
)
def test_settings_that_cannot_work_or_hold_a_key_are_refused(values):
    with pytest.raises(ValidationError):
        settings(**values)
