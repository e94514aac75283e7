"""Keys: where they are sent, and what is said of those that cannot be."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from divsel_ray.config import EmbedApiConfig, JudgeConfig
from divsel_ray.errors import InputError
from divsel_ray.models.api_client import ApiClient, find_key
from tests.models.json_server import Reply, Seen, json_server

REMOTE = "http://gpu-server:8000/v1"


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("CO_API_KEY", "co-cohere")
    monkeypatch.setenv("MY_KEY", "sk-mine")


@pytest.mark.parametrize("broken", ["sk-one\nsk-two", "sk-one sk-two", "sk-\x7fone", "sk-ключ"])
def test_what_cannot_be_a_key_is_refused_by_its_variable_and_never_shown(monkeypatch, broken):
    monkeypatch.setenv("MY_KEY", broken)
    with pytest.raises(InputError, match=r"^judge: the environment variable MY_KEY contains no valid key") as caught:
        ApiClient("judge", JudgeConfig(model="m", key_variable="MY_KEY"))
    assert "sk-" not in str(caught.value)


def test_blanks_around_a_key_do_not_count(monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-mine\n")
    assert find_key(JudgeConfig(model="m", key_variable="MY_KEY"), "judge") == "sk-mine"


@pytest.mark.parametrize(
    ("server", "key"),
    [
        (JudgeConfig(model="m", url=REMOTE), None),
        (EmbedApiConfig(model="m", url=REMOTE), None),
        (EmbedApiConfig(model="m", url=REMOTE, protocol="cohere"), None),
        (JudgeConfig(model="m", url=REMOTE, key_variable="OPENAI_API_KEY"), "sk-openai"),
        (EmbedApiConfig(model="m", url=REMOTE, key_variable="MY_KEY"), "sk-mine"),
        (JudgeConfig(model="m", url="http://localhost.example.org/v1"), None),
        (JudgeConfig(model="m", url="http://localhost:8000/v1"), "sk-openai"),
        (EmbedApiConfig(model="m", url="http://[::1]:8000/v1", protocol="cohere"), "co-cohere"),
        (JudgeConfig(model="m"), "sk-openai"),
        (EmbedApiConfig(model="m", protocol="cohere"), "co-cohere"),
        (JudgeConfig(model="m", url="https://gpu-server/v1"), "sk-openai"),
    ],
)
def test_an_unencrypted_server_on_another_machine_gets_a_key_only_where_its_variable_is_named(server, key):
    assert find_key(server, "judge") == key
    again = type(server).model_validate(server.model_dump())
    assert find_key(again, "judge") == key


@pytest.mark.parametrize("config", [JudgeConfig, EmbedApiConfig])
def test_an_address_that_cannot_be_read_is_refused(config):
    with pytest.raises(ValidationError):
        config(model="m", url="http://[::1/v1")


def test_a_server_that_wants_a_key_and_got_none_says_so():
    seen = Seen()
    with json_server(seen, lambda _: Reply(status=401), lambda *_: b""):
        client = ApiClient("judge", JudgeConfig(model="m", url=seen.url, key_variable="NO_SUCH_KEY"))
        with pytest.raises(InputError, match=r"requires a key \(HTTP 401\); name its variable in key_variable"):
            client.send("chat/completions", {})
    assert seen.keys == [None]


def test_a_missing_key_is_asked_for_where_it_can_be_given():
    with pytest.raises(InputError, match=r"NO_SUCH_KEY is not set; .*on a cluster: before Ray starts on its nodes"):
        find_key(JudgeConfig(model="m", key_variable="NO_SUCH_KEY"), "judge")
    with pytest.raises(InputError, match="key_variable is empty"):
        find_key(JudgeConfig(model="m", key_variable=""), "judge")
