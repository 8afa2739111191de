"""Requests that fail: which are tried again, how long after, and what is said in the end."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.server import ServerConfig
from pipeline.generate.server import client as module
from pipeline.generate.server.client import Client, ServerRefused, Unanswered


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)


def client_of(*servers: Any, **settings: Any) -> Client:
    return Client(ServerConfig(url=tuple(server.url for server in servers), attempts=4, **settings))


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_what_may_pass_is_tried_again(serve: Any, status: int) -> None:
    server = serve()
    server.fault = lambda path, number: (status, {}, {}) if number < 3 else None
    assert client_of(server).ask((server.url,), "/version") == {"version": "0.32.0"}
    assert len(server.requests) == 4


def test_what_does_not_pass_is_told_in_the_end(serve: Any) -> None:
    server = serve()
    server.fault = lambda path, number: (500, {"error": {"message": "EngineDeadError"}}, {})
    with pytest.raises(Unanswered, match=r"/version: status 500: EngineDeadError"):
        client_of(server).ask((server.url,), "/version")
    assert len(server.requests) == 4


def test_a_final_no_is_not_asked_again(serve: Any) -> None:
    server = serve()
    server.fault = lambda path, number: (400, {"error": {"message": "too long", "code": 400}}, {})
    with pytest.raises(ServerRefused, match="status 400: too long"):
        client_of(server).ask((server.url,), "/version")
    assert len(server.requests) == 1


def test_another_replica_answers_for_one_that_is_gone(serve: Any) -> None:
    gone, there = serve(), serve()
    gone.stop()
    client = client_of(gone, there)
    assert client.ask(client.urls, "/version") == {"version": "0.32.0"}
    assert client.is_well()


def test_a_pause_is_as_long_as_the_server_asks(serve: Any) -> None:
    server = serve()
    server.fault = lambda path, number: (429, {}, {"Retry-After": "0.3"}) if number == 0 else None
    start = time.monotonic()
    client_of(server).ask((server.url,), "/version")
    assert 0.3 <= time.monotonic() - start < 5


def test_a_slow_server_is_left_after_the_time_limit(serve: Any) -> None:
    server = serve()
    server.fault = lambda path, number: time.sleep(0.5) if number == 0 else None  # type: ignore[func-returns-value]
    assert client_of(server, timeout_seconds=0.2).ask((server.url,), "/version")
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"[" * 100_000])
def test_an_answer_of_another_kind_is_told(serve: Any, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    server = serve()
    monkeypatch.setattr(module.json, "loads", lambda data, loads=module.json.loads: loads(body))
    with pytest.raises(Unanswered, match="is it a vLLM server"):
        client_of(server).ask((server.url,), "/version")


def test_the_key_is_sent_and_never_repeated(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    server.key = "sk-very-secret"
    with pytest.raises(ServerRefused, match="401"):
        client_of(server).ask((server.url,), "/v1/models")
    monkeypatch.setenv("SERVER_KEY", "sk-very-secret")
    client = client_of(server, key_variable="SERVER_KEY")
    assert client.ask((server.url,), "/v1/models")["object"] == "list"
    server.fault = lambda path, number: (500, {"error": "bad key sk-very-secret"}, {})
    with pytest.raises(Unanswered, match=r"bad key \*\*\*"):
        client.ask((server.url,), "/v1/models")
    monkeypatch.delenv("SERVER_KEY")
    with pytest.raises(UserError, match="no SERVER_KEY"):
        client_of(server, key_variable="SERVER_KEY")


def test_the_key_does_not_follow_to_another_host(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-very-secret")
    server, other = serve(), serve()
    server.fault = lambda path, number: (307, {}, {"Location": f"{other.url}/version"})
    with pytest.raises(ServerRefused, match="307"):
        client_of(server, key_variable="SERVER_KEY").ask((server.url,), "/version")
    assert not other.requests


@pytest.mark.parametrize(
    "url", ["gpu1:8000", "ftp://gpu1", "http://", "http://user:word@gpu1", "http://gpu1?key=1", "http://a:b"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        ServerConfig.model_validate(url)


@pytest.mark.parametrize(("command", "said"), [("./serve.sh 'x", "no closing quotation"), ("  ", "expected a command")])
def test_a_command_that_cannot_be_run_is_refused_before_the_run(command: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServerConfig.model_validate({"url": "http://a:1", "update": command})


def test_addresses_are_written_in_many_ways() -> None:
    assert ServerConfig.model_validate("http://a:1/v1/").url == ("http://a:1",)
    assert ServerConfig.model_validate(["http://a:1", "http://b:1/"]).url == ("http://a:1", "http://b:1")
    assert ServerConfig.model_validate({"url": "http://a:1", "attempts": 2}).attempts == 2
