"""One engine of several: its process, and what it is at work on."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from pipeline.common.errors import UserError
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.engines.wire import asks_to_json, reply_from_json
from pipeline.run.child import Child, Event
from pipeline.run.process import own_log

MODULE = "pipeline.generate.engines"
PIPE_BYTES = 1 << 20
"""Room for what an engine says while nobody listens."""

Said: TypeAlias = "list[Reply] | Event | UserError"
"""Completions, that it is ready, or its last word."""


@dataclass(eq=False)
class Bundle:
    """Requests of one group that one engine is given."""

    asks: dict[tuple[int, int, int], CompletionRequest]
    """Those that are not answered, by their keys."""
    deaths: int = 0
    """Engines that died with it in hand."""


def spare(environment: Mapping[str, str] | None = None) -> Child:
    """A process for an engine, which loads its libraries."""
    child = Child(MODULE, own_log(), environment or {})
    with contextlib.suppress(OSError, AttributeError):  # not every system lets pipes grow
        fcntl.fcntl(child.output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return child


class Member:
    """An engine's process. What it says is put into a queue that several share, in its order and up to its last word.

    Args:
        number: its place among them.
        environment: variables of its own.
        said: the queue.
        child: its process, if there is one that has no work yet.
    """

    def __init__(
        self,
        number: int,
        environment: Mapping[str, str],
        said: SimpleQueue[tuple[Member | None, Said]],
        child: Child | None = None,
    ) -> None:
        self.number = number
        self.pending: dict[tuple[int, int, int], Bundle] = {}
        self.is_ready = False
        self.name = ""
        """What is recorded with every row that it answers."""
        self.tokens = 0
        self.deaths = 0
        """How often in a row an engine in this place died without an answer."""
        self._child = child or spare(environment)
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
        self.is_ready = False
        self._child.stop()
        self._ear.join()
        self._child.end()
