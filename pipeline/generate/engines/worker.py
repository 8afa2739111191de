"""The process of one engine: requests come in while it works, and completions leave as they finish."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipeline.common.errors import StageFailed
from pipeline.config.engine import EngineConfig
from pipeline.generate.engine import Engine, Reply, reason_of
from pipeline.generate.engines.wire import asks_from_json, reply_to_json
from pipeline.generate.mixture.folder import MixedWith
from pipeline.run.process import Event, Reporter, answering, as_child, log_to


def main() -> None:
    """Do what standard input says, one message a line, until it ends.

    log: write there from now on. load: start the engine. reload: take other weights. forget: drop cached prompts. Any other
    message is requests of one group. Loading and reloading are answered by `ready`.
    """
    reporter = as_child()
    inbox: SimpleQueue[Event] = SimpleQueue()
    importlib.import_module("vllm.entrypoints.llm")
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    worker = _Worker(reporter)
    with answering(reporter):
        while True:
            while not worker.is_busy or not inbox.empty():
                worker.take(inbox.get())
            worker.step()


def _read(inbox: SimpleQueue[Event]) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))


class _Worker:
    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._engine: Engine | None = None

    @property
    def is_busy(self) -> bool:
        return self._engine is not None and self._engine.is_busy

    def take(self, message: Event) -> None:
        match message:
            case {"log": path}:
                log_to(path)
            case {"load": given}:
                self._engine = self._loaded(given)
                self._ready()
            case {"reload": path}:
                self._reload(Path(path))
                self._ready()
            case {"forget": _}:
                self._running.forget()
            case _:
                refused = [reply for ask in asks_from_json(message) if (reply := self._running.add(ask))]
                self._tell(refused)

    def step(self) -> None:
        self._tell(self._running.step())

    def _loaded(self, given: dict[str, Any]) -> Engine:
        config = EngineConfig.model_validate(given["config"])
        mixed = MixedWith(**given["mixture"]) if given["mixture"] else None
        return Engine(Path(given["model"]), config, given["dtype"], trust_remote_code=given["trust_remote_code"], mixed=mixed)

    def _reload(self, model: Path) -> None:
        try:
            self._running.reload(model)
        except Exception as error:
            raise StageFailed(f"vLLM cannot reload weights: {reason_of(error)}") from error

    @property
    def _running(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _ready(self) -> None:
        self._reporter.send("ready", name=self._running.name)

    def _tell(self, replies: list[Reply]) -> None:
        if replies:
            self._reporter.send("replies", replies=[reply_to_json(reply) for reply in replies])
