"""One engine of several: its process, and what it is at work on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from pipeline.common.errors import UserError
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.engines.hands import EngineProcess
from pipeline.generate.engines.wire import asks_to_json, reply_from_json
from pipeline.run.child import Event
from pipeline.run.process import own_log

Said: TypeAlias = "list[Reply] | Event | UserError"
"""Completions, that it is ready, or its last word."""


@dataclass(eq=False)
class Bundle:
    """Requests of one group that one engine is given."""

    asks: dict[tuple[int, int, int], CompletionRequest]
    """Those that are not answered, by their keys."""
    deaths: int = 0
    """Engines that died with it in hand."""


class Member:
    """An engine's process. What it says is put into a queue that several share, in its order and up to its last word.

    Args:
        number: its place among them.
        process: what runs it, with no work yet.
        said: the queue.
    """

    def __init__(
        self,
        number: int,
        process: EngineProcess,
        said: SimpleQueue[tuple[Member | None, Said]],
    ) -> None:
        self.number = number
        self.pending: dict[tuple[int, int, int], Bundle] = {}
        self.name = ""
        """What is recorded with every row that it answers."""
        self.tokens = 0
        self.deaths = 0
        """How often in a row an engine in this place died without an answer."""
        self.waits_for_room = False
        """Whether it waits for a node with room for it, and has for long."""
        self._owed = 0
        self._child = process
        self.logs_to(own_log())
        self._ear = threading.Thread(target=self._listen, args=(said,), daemon=True)
        self._ear.start()

    def _listen(self, said: SimpleQueue[tuple[Member | None, Said]]) -> None:
        for event in self._child.events():
            match event["event"]:
                case "replies":
                    said.put((self, [reply_from_json(one) for one in event["replies"]]))
                case "error":
                    said.put((self, self._child.error(event)))
                    return
                case _:
                    said.put((self, event))
        said.put((self, self._child.crash()))

    @property
    def is_ready(self) -> bool:
        """Whether it has the weights that it was last told to have."""
        return bool(self.name) and self._owed == 0

    def have(self, message: Event) -> None:
        """Have it load weights; it is ready once it says so."""
        self._owed += 1
        self.tell(message)

    def heard_ready(self, name: str) -> None:
        self._owed, self.name, self.waits_for_room = self._owed - 1, name, False

    def logs_to(self, log: Path) -> None:
        self._child.logs_to(log)
        self.tell({"log": str(log)})

    def tell(self, message: Event) -> None:
        self._child.tell(message)

    def give(self, bundle: Bundle) -> None:
        self.pending.update(dict.fromkeys(bundle.asks, bundle))
        self.tell(asks_to_json(list(bundle.asks.values())))

    def answered(self, replies: Sequence[Reply]) -> Sequence[Reply]:
        """Strike completions off what it is at work on."""
        for reply in replies:
            del self.pending.pop(reply.key).asks[reply.key]
            self.tokens += len(reply.token_ids)
        self.deaths = 0
        return replies

    def unfinished(self) -> list[Bundle]:
        """What it was given and did not answer."""
        return list(dict.fromkeys(self.pending.values()))

    def end(self) -> None:
        """Make sure that it is gone."""
        self.name = ""
        self._child.stop()
        self._ear.join()
        self._child.end()
