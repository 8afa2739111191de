"""Real worker processes for every test; `own` writes a module of graders into a fresh working directory."""

from __future__ import annotations

import json
import os
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool, RewardResult

Grade = Callable[..., list[RewardResult]]


@pytest.fixture
def grade() -> Grade:
    """grade(components, items, **limits): the results, from a pool of their own."""

    def run(components: Sequence[RewardComponent], items: Sequence[RewardItem], **limits: Any) -> list[RewardResult]:
        with RewardPool(RewardConfig(components=tuple(components), **limits)) as pool:
            return pool.submit(items).result(timeout=60)

    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """own(source): the name of a new module with that source, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a relative entry would now mean another directory

    def write(source: str) -> str:
        name = f"own_{uuid.uuid4().hex[:12]}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        return name

    return write


@pytest.fixture
def wait_until_gone() -> Callable[[str], list[str]]:
    """wait_until_gone(text): command lines that still hold the text after 10 seconds; [] as soon as there are none."""

    def running(text: str) -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and int(pid) != os.getpid():
                found.append(f"{pid}: {line}")
        return found

    def wait(text: str) -> list[str]:
        deadline = time.monotonic() + 10
        while (found := running(text)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    return wait


Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """Answers with `answer(body)`: a status, and what is sent as JSON (or bytes as they are)."""

    def __init__(self) -> None:
        server = self
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.answer: Answer = lambda body: (200, said("Score: 7"))
        self.models: tuple[int, Any] = (200, {"data": [{"id": "tiny"}]})
        self.headers: dict[str, str] = {}
        self.withheld = 0  # bytes of an error's text that never come
        self.released = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(*server.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, body, self.headers.get("Authorization")))
                self._reply(*server.answer(body))

            def _reply(self, status: int, value: Any) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                withheld = server.withheld if status >= 400 else 0
                self.send_header("Content-Length", str(len(data) + withheld))
                for name, text in server.headers.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)
                if withheld:
                    self.wfile.flush()
                    server.released.wait(20)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("pipeline.rewards.graders.chat.FIRST_PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()
