"""Messages when a run stops or fails, at a receiver on this machine and to a command."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.common.errors import StageFailed
from pipeline.config.run import RunConfig
from pipeline.config.tell import TellConfig
from pipeline.run.state import Iteration, Run, Stop
from pipeline.run.telling import tell_of_end, telling_of_failure
from pipeline.store import Artifact

Config = Callable[..., RunConfig]
TOKEN = "t0ken-that-nobody-sees"


class Receiver:
    """A web server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.status, self.wait = 200, 0.0
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, {key.lower(): value for key, value in self.headers.items()}, json.loads(body)))
                time.sleep(receiver.wait)
                self.send_response(receiver.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def make_stopped(make_config: Config, make_artifact: Callable[..., Artifact]) -> Callable[..., Run]:
    """make_stopped(url=…): a run of two checkpoints that collapsed."""

    def make(**tell: Any) -> Run:
        run = Run(make_config({"tell": tell}), stopped=Stop("min_entropy", 1, "entropy fell to 0.1", healthy=False))
        for number, value in ((0, 0.5), (1, 0.25)):
            evaluation = make_artifact("evaluation", number=number, pass_at={"1": {"value": value}})
            run.iterations.append(Iteration(number, make_artifact("checkpoint", number=number), evaluation=evaluation))
        return run

    return make


def warned(run: Run) -> list[str]:
    warnings: list[str] = []
    tell_of_end(run, warnings.append)
    return warnings


def test_a_rule_that_stops_a_run_is_posted_with_the_runs_figures(receiver: Receiver, make_stopped: Callable[..., Run]) -> None:
    assert warned(make_stopped(url=f"http://{receiver.address}/hook")) == []
    ((path, headers, body),) = receiver.got
    assert (path, headers["content-type"]) == ("/hook", "application/json")
    said, figures, place = body["text"].split("\n")
    assert said == f"rollbook, {body['run']}: stopped after iteration 1: entropy fell to 0.1"
    assert figures == "pass@1 25.0 % (iteration 1), best 50.0 % (iteration 0)"
    assert place.endswith(body["directory"])
    assert (body["event"], body["rule"], body["iteration"], body["pass_at_1"]) == ("stopped", "min_entropy", 1, 0.25)


def test_a_chat_is_sent_the_text_alone(receiver: Receiver, make_stopped: Callable[..., Run]) -> None:
    for payload in ("text", "content"):
        assert warned(make_stopped(url=f"http://{receiver.address}/", payload=payload)) == []
    assert [list(body) for _, _, body in receiver.got] == [["text"], ["content"]]


def test_secrets_come_from_the_environment_and_are_shown_nowhere(
    receiver: Receiver, make_stopped: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", TOKEN)
    run = make_stopped(url=f"http://me:${{HOOK_TOKEN}}@{receiver.address}/hooks/${{HOOK_TOKEN}}")
    assert warned(run) == []
    assert receiver.got[0][0] == f"/hooks/{TOKEN}" and receiver.got[0][1]["authorization"].startswith("Basic ")
    assert TOKEN not in run.config.model_dump_json()
    receiver.status = 404
    dead = make_stopped(url="http://127.0.0.1:9/${HOOK_TOKEN}")
    monkeypatch.setenv("BROKEN", f"http://[{TOKEN}/")
    broken = make_stopped(url="${BROKEN}")
    warnings = [*warned(run), *warned(dead), *warned(broken)]
    assert warnings[0] == "tell.url: the message was not delivered: the answer was 404 Not Found"
    assert warnings[1] == "tell.url: the message was not delivered: Connection refused"
    assert len(warnings) == 3 and TOKEN not in "".join(warnings)


def test_a_message_that_fails_is_a_warning(
    receiver: Receiver, make_stopped: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    assert "no variable NO_SUCH_HOOK" in warned(make_stopped(url="${NO_SUCH_HOOK}"))[0]
    monkeypatch.setenv("NO_SUCH_HOOK", "file:///etc/passwd")
    assert "no address that begins with https://" in warned(make_stopped(url="${NO_SUCH_HOOK}"))[0]
    receiver.status = 302  # a redirect could lead a secret to another host
    assert "the answer was 302 Found" in warned(make_stopped(url=f"http://{receiver.address}/"))[0]
    receiver.status, receiver.wait = 200, 1.0
    assert "no answer within 0.1 s" in warned(make_stopped(url=f"http://{receiver.address}/", timeout_seconds=0.1))[0]
    assert "no-such-mailer: No such file" in warned(make_stopped(command="no-such-mailer me@example.org"))[0]
    failing = make_stopped(command="sh -c 'echo no relay >&2; exit 3'")
    assert warned(failing) == ["tell.command: the message was not delivered: sh ended with status 3: no relay"]
    assert "did not end within 0.1 s" in warned(make_stopped(command="sleep 5", timeout_seconds=0.1))[0]


def test_a_command_has_the_message_on_its_standard_input(make_stopped: Callable[..., Run], tmp_path: Path) -> None:
    assert warned(make_stopped(command=f"tee {tmp_path}/mail")) == []
    assert "entropy fell to 0.1\npass@1 25.0 %" in (tmp_path / "mail").read_text(encoding="utf-8")


def test_a_failure_is_told_once_and_goes_on_and_ctrl_c_is_none(receiver: Receiver, make_config: Config) -> None:
    config = make_config({"tell": {"url": f"http://{receiver.address}/"}})
    for error in (StageFailed("vLLM ended\n  | its log"), KeyboardInterrupt(), SystemExit(143)):
        with pytest.raises(type(error)), telling_of_failure(config, pytest.fail):
            raise error
    ((_, _, body),) = receiver.got
    assert (body["event"], body["why"]) == ("failed", "failed: vLLM ended\n  | its log")


def test_a_run_that_is_complete_is_told_where_that_is_asked_for(receiver: Receiver, make_config: Config) -> None:
    address = f"http://{receiver.address}/"
    for on in (["stopped", "failed"], ["finished"]):
        assert warned(Run(make_config({"tell": {"url": address, "on": on}}))) == []
    assert warned(Run(make_config({"tell": {"url": address, "on": ["finished"]}}), missing="train 0")) == []
    assert [body["event"] for _, _, body in receiver.got] == ["finished"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"url": "ftp://example.org"}, "expected an address"),
        ({"url": "https://me:secret@example.org"}, "holds a password, and would be written down"),
        ({"command": " "}, "expected a command"),
        ({"command": "mail 'me"}, "not a command"),
        ({"on": []}, "at least 1"),
        ({"on": ["ended"]}, "'stopped', 'failed' or 'finished'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TellConfig.model_validate(wrong)
