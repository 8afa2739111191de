"""Servers in place of an engine: found out before they are used, asked many things at once, their failures told apart."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.common.commands import VLLM_SERVER
from pipeline.common.errors import StageFailed, UserError
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.server import client, engine
from pipeline.generate.server.engine import ServedEngine, Servers
from pipeline.generate.server.served import name_of

PROBES = [[20, 30, 40], [50, 60]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.01)


class Notes:
    def note(self, message: str) -> None:
        pass


def engine_for(policy: Any, *urls: str, dtype: str = "float32", max_model_len: int | None = None, **server: Any) -> ServedEngine:
    settings = {"url": urls, "attempts": 2, **server}
    config = EngineConfig.model_validate({"server": settings, "max_model_len": max_model_len})
    return Servers().engine_for(policy, config, dtype, PROBES, Notes(), trust_remote_code=False, mixed=None, cluster=None)  # type: ignore[arg-type]


def answers(served: ServedEngine, count: int = 12, **sampling: Any) -> list[Reply]:
    how = SamplingConfig(**{"max_tokens": 8, **sampling})
    asks = ([CompletionRequest((0, number, 0), [20, 30, number], how, seed=2**62 + number)] for number in range(count))
    replies = [reply for step in served.run(asks, in_flight=1) for reply in step]
    return sorted(replies, key=lambda reply: reply.key)


def test_a_server_with_the_checkpoint_answers(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    served = engine_for(checkpoint(0), server.url)
    replies = answers(served, temperature=0.7, stop=("x",))
    assert served.name == "vllm 0.32.0 server float32"
    assert all(
        reply.error is None and (reply.text, reply.stopped_by) == (None, None) and max(reply.logprobs) <= 0 for reply in replies
    )
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    path, body = server.requests[-1]
    assert path == "/v1/completions"
    assert (body["temperature"], body["logprobs"], body["return_token_ids"], body["stop"]) == (0.7, 0, True, ["x"])
    assert {request["seed"] for _, request in server.requests[-12:]} == {2**62 + number for number in range(12)}


def test_a_server_with_other_weights_is_refused_with_the_command_for_the_right_ones(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(1).path)
    with pytest.raises(StageFailed, match=r"nats from the checkpoint's in float32") as refusal:
        engine_for(checkpoint(0), server.url)
    assert f"{VLLM_SERVER} --model {checkpoint(0).path} --served-model-name {name_of(checkpoint(0))}" in str(refusal.value)
    assert "--logprobs-mode processed_logprobs" in str(refusal.value)


def test_one_replica_with_other_weights_is_found(serve: Any, checkpoint: Any) -> None:
    right, wrong = serve(checkpoint(0).path), serve(checkpoint(1).path, root=str(checkpoint(0).path))
    with pytest.raises(StageFailed, match=wrong.url):
        engine_for(checkpoint(0), right.url, wrong.url)


def test_logprobs_before_the_temperature_are_refused(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    server.mode = "raw_logprobs"
    with pytest.raises(UserError, match=r"before the temperature.*--logprobs-mode processed_logprobs"):
        engine_for(checkpoint(0), server.url)


def test_in_bfloat16_the_server_must_name_the_checkpoint_too(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path, root="/models/mine")
    with pytest.raises(StageFailed, match=r"serves '/models/mine'. The checkpoint of iteration 0 must answer"):
        engine_for(checkpoint(0), server.url, dtype="bfloat16")
    for name in (name_of(checkpoint(0)), f"/elsewhere/{checkpoint(0).path.name}", str(checkpoint(0).path)):
        server.root = name
        engine_for(checkpoint(0), server.url, dtype="bfloat16")


def test_a_server_of_another_model_is_refused(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    server.answer = lambda choice: {**choice, "token_ids": [9999] * len(choice["token_ids"])}
    with pytest.raises(StageFailed, match="another vocabulary"):
        engine_for(checkpoint(0), server.url)


def test_servers_take_a_new_checkpoint_by_the_command(serve: Any, checkpoint: Any, tmp_path: Path) -> None:
    """The command writes the checkpoint's directory to a file; the server loads what it finds there at its next look."""
    server, told = serve(checkpoint(0).path), tmp_path / "told"

    def reload(path: str, number: int) -> None:
        if told.exists():
            server.load(Path(told.read_text()))

    server.fault = reload
    command = (
        f"{sys.executable} -c 'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])' {told} {{checkpoint}}"
    )
    served = engine_for(checkpoint(1), server.url, update=command)
    assert told.read_text() == str(checkpoint(1).path)
    assert answers(served, 2)


def test_servers_give_back_their_memory_when_a_checkpoint_has_answered(serve: Any, checkpoint: Any, tmp_path: Path) -> None:
    """The commands write what became of the server to a file; released, it answers as one does that sleeps."""
    server, state = serve(checkpoint(0).path), tmp_path / "state"
    state.write_text("released")
    server.fault = lambda path, number: (500, {}, {}) if state.read_text() == "released" else None
    write = f"{sys.executable} -c 'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])' {state}"
    servers, config = Servers(), {"url": server.url, "update": f"{write} {{checkpoint}}", "release": f"{write} released"}
    for _ in range(2):
        engine = EngineConfig.model_validate({"server": config})
        served = servers.engine_for(
            checkpoint(0), engine, "float32", PROBES, Notes(), trust_remote_code=False, mixed=None, cluster=None
        )  # type: ignore[arg-type]
        assert state.read_text() == str(checkpoint(0).path)
        assert answers(served, 2)
        servers.rest()
        assert state.read_text() == "released"


def test_servers_that_cannot_come_back_are_not_released() -> None:
    with pytest.raises(ValidationError, match="release: takes `update` as well"):
        EngineConfig.model_validate({"server": {"url": "http://gpu1:8000", "release": "./sleep.sh"}})


@pytest.mark.parametrize(
    ("command", "kind", "said"),
    [("false", StageFailed, "ended with status 1"), ("no-such-command {checkpoint}", UserError, "No such file"),
     ("true", StageFailed, "nats from the checkpoint"), ("sleep 5", StageFailed, "took more than update_seconds")],
)  # fmt: skip
def test_a_command_that_does_not_help_is_told(
    serve: Any, checkpoint: Any, command: str, kind: type[Exception], said: str
) -> None:
    server = serve(checkpoint(0).path)
    with pytest.raises(kind, match=said):
        engine_for(checkpoint(1), server.url, update=command, update_seconds=0.1)


def test_no_more_than_the_allowed_requests_are_under_way(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    served = engine_for(checkpoint(0), server.url, concurrency=3)
    assert len(answers(served, 40)) == 40
    assert 1 < server.most_at_once <= 3


def test_replicas_share_the_work_and_one_may_go(serve: Any, checkpoint: Any) -> None:
    first, second = serve(checkpoint(0).path), serve(checkpoint(0).path, root="/elsewhere")
    served = engine_for(checkpoint(0), first.url, second.url)
    first.fault = lambda path, number: (0, {}, {}) if number > 4 else None
    alone = answers(engine_for(checkpoint(0), second.url))
    assert answers(served) == alone
    assert len(second.requests) > len(alone)


def test_a_request_that_fails_for_good_is_a_reply_with_its_reason(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    served = engine_for(checkpoint(0), server.url)
    server.fault = lambda path, number: (400, {"error": {"message": "too odd"}}, {}) if number == 5 else None
    errors = [reply.error for reply in answers(served) if reply.error]
    assert errors == ["status 400: too odd"]
    served = engine_for(checkpoint(0), server.url)
    server.fault = lambda path, number: (500, {"error": "broken"}, {}) if path == "/v1/completions" else None
    replies = answers(served, 2)
    assert all(reply.error and "status 500: broken" in reply.error for reply in replies)


def test_an_outage_stops_the_stage(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    served = engine_for(checkpoint(0), server.url)
    server.stop()
    with pytest.raises(StageFailed, match="Finished shards are kept"):
        answers(served)


def test_a_server_that_is_not_there_is_told_with_the_command(checkpoint: Any) -> None:
    with pytest.raises(
        StageFailed, match=r"Connection refused. Start it with\n  python -m vllm\.entrypoints\.openai\.api_server --model "
    ):
        engine_for(checkpoint(0), "http://127.0.0.1:9")


def test_a_context_that_is_too_small_is_refused(serve: Any, checkpoint: Any) -> None:
    server = serve(checkpoint(0).path)
    server.max_model_len = 64
    assert answers(engine_for(checkpoint(0), server.url))
    with pytest.raises(UserError, match=r"at most 64 tokens.*--max-model-len 256"):
        answers(engine_for(checkpoint(0), server.url), max_tokens=100)
    replies = answers(engine_for(checkpoint(0), server.url, max_model_len=50), max_tokens=100)
    assert max(len(reply.token_ids) for reply in replies) <= 47
    server.answer = lambda choice: {**choice, "finish_reason": "length"}
    with pytest.raises(UserError, match="larger --max-model-len"):
        answers(engine_for(checkpoint(0), server.url))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"token_ids": None}, "no token ids"), ({"logprobs": None}, "no logprobs"), ({"prompt_token_ids": [1]}, "another prompt")],
)
def test_answers_that_are_of_no_use_are_refused(serve: Any, checkpoint: Any, change: dict[str, Any], said: str) -> None:
    server = serve(checkpoint(0).path)
    server.answer = lambda choice: choice | change
    with pytest.raises(UserError, match=said):
        engine_for(checkpoint(0), server.url)


def test_servers_without_requests_wait_until_they_are_woken(serve: Any, checkpoint: Any) -> None:
    policy = checkpoint(0)
    served = engine_for(policy, serve(policy.path).url)
    first, second = (CompletionRequest((0, n, 0), [20, 30, n], SamplingConfig(max_tokens=8), seed=n) for n in range(2))

    def turns() -> Iterator[list[CompletionRequest]]:
        yield [first]
        threading.Timer(0.3, served.wake).start()
        while not woken():
            yield []
        yield [second]

    since = time.monotonic()

    def woken() -> bool:
        return time.monotonic() - since > 0.3

    replies = [reply for answered in served.run(turns(), in_flight=1) for reply in answered]
    assert sorted(reply.key[1] for reply in replies) == [0, 1]
