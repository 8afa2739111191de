"""A small HTTP server with the routes and the answers of vLLM's (as recorded from 0.32), that can be made to fail."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.store import Artifact, Request, Store

BASE = Path(__file__).resolve().parents[4] / "data/base"
VOCABULARY, END = 259, 1
Fault = Callable[[str, int], tuple[int, dict[str, Any], dict[str, str]] | None]


class VllmServer:
    """Answers with tokens that follow from prompt and seed, and the logprobs of the weights that it has."""

    def __init__(self, model: Path, root: str) -> None:
        self.root = root
        self.max_model_len = 256
        self.mode = "processed_logprobs"
        self.key: str | None = None
        self.fault: Fault = lambda path, number: None
        """Called with every path and the number of the request: status, body and headers to answer with, or None. Status 0
        breaks the connection."""
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice
        """Changes a completion before it is sent."""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.at_once = self.most_at_once = 0
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.load(model)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def load(self, model: Path) -> None:
        self._model = _weights(model)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def models(self) -> dict[str, Any]:
        card = {"id": self.root, "object": "model", "owned_by": "vllm", "root": self.root, "parent": None}
        return {"object": "list", "data": [{**card, "max_model_len": self.max_model_len}]}

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, draw = body["prompt"], random.Random(f"{body['prompt']}{body['seed']}")
        tokens = [draw.randrange(2, VOCABULARY) for _ in range(draw.randint(1, body["max_tokens"]))]
        ended = len(tokens) < body["max_tokens"]
        tokens[-1] = END if ended else tokens[-1]
        with self._guard, torch.inference_mode():
            logits = self._model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        if self.mode == "processed_logprobs" and body["temperature"] > 0:
            logits = logits / body["temperature"]
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        choice = {
            "index": 0,
            "text": "text",
            "logprobs": {"token_logprobs": logprobs, "tokens": [f"token_id:{token}" for token in tokens]},
            "finish_reason": "stop" if ended else "length",
            "stop_reason": None,
            "token_ids": tokens,
            "prompt_token_ids": prompt,
        }
        return {"id": "cmpl-0", "object": "text_completion", "model": self.root, "choices": [self.answer(choice)]}


@cache
def _weights(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def _handler(server: VllmServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            with server._guard:
                server.requests.append((self.path, body))
                number = sum(path == self.path for path, _ in server.requests) - 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            result = self._result(body, number)
            with server._guard:
                server.at_once -= 1
            self._send(*result)

        def _result(self, body: dict[str, Any], number: int) -> tuple[int, dict[str, Any], dict[str, str]]:
            if (fault := server.fault(self.path, number)) is not None:
                return fault
            if server.key and self.path.startswith("/v1") and self.headers.get("Authorization") != f"Bearer {server.key}":
                return 401, {"error": "Unauthorized"}, {}
            match self.path:
                case "/v1/models":
                    return 200, server.models(), {}
                case "/version":
                    return 200, {"version": "0.32.0"}, {}
                case "/v1/completions" if body["temperature"] < 0:
                    return 400, {"error": {"message": "temperature must be non-negative", "code": 400}}, {}
                case "/v1/completions":
                    return 200, server.complete(body), {}
                case "/health":
                    return 200, {}, {}
            return 404, {"detail": "Not Found"}, {}

        def _send(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
            if status == 0:
                self.connection.close()
                return
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def serve() -> Iterator[Callable[..., VllmServer]]:
    """serve(model, root): a server with these weights, that says to have them from `root`."""
    started: list[VllmServer] = []

    def start(model: Path = BASE, root: str | None = None) -> VllmServer:
        started.append(VllmServer(model, root or str(model)))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Artifact]:
    """checkpoint(n): the base model with its output weights scaled by 1 + 0.01 n, as the checkpoint of iteration n."""
    store = Store(tmp_path_factory.mktemp("store"))

    @cache
    def make(number: int) -> Artifact:
        with store.work(Request("checkpoint", "test/1", {"number": number})) as work:
            if isinstance(work, Artifact):
                return work
            model: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
            with torch.no_grad():
                model.lm_head.weight *= 1 + 0.01 * number
            model.save_pretrained(work.path)
            shutil.copy(BASE / "tokenizer.json", work.path)
            return work.finish({"iteration": number})

    return make
