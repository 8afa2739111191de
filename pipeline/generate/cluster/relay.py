"""The node's end of an engine: an actor of Ray's that starts the engine's process beside it, and passes on what is said.

One thread takes messages to the engine in the order in which they were sent, and a second one waits for what it says
(`GROUPS`): actors with several threads promise no order between calls, those of one group with one thread do.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pipeline.common.errors import UserError
from pipeline.run.child import Child, Event
from pipeline.store.store import verified

GROUPS = {"tell": 1, "hear": 1}
"""Threads of an actor, by the name of a group of calls."""
ADDRESSES = "addresses"
"""In a message: those of checkpoints in a bucket, which stand for their directories on this machine."""


class Relay:
    """An engine's process on the node that Ray chose.

    Args:
        module: what the process runs.
        environment: variables added to the node's own.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="rollbook-engine-")
        self._child = Child(module, Path(self._scratch.name) / "engine.log", environment)
        self._said: SimpleQueue[Event | None] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for event in self._child.events():
            self._said.put(event)
        self._said.put(None)

    def tell(self, message: Event) -> None:
        """Pass a message on. A checkpoint that is in a bucket is fetched first, once a node."""
        try:
            self._child.tell({"load": _here(message["load"])} if "load" in message else message)
        except UserError as error:
            self._said.put({"event": "error", "kind": type(error).__name__, "message": f"{socket.gethostname()}: {error}"})

    def hear(self) -> tuple[list[Event], bool]:
        """What the engine said since, at least one event, and whether that is all that it will ever say."""
        events = [self._said.get()]
        while True:
            try:
                events.append(self._said.get_nowait())
            except Empty:
                break
        return [event for event in events if event is not None], None in events

    def last_words(self) -> tuple[str, str]:
        """The node, and how the process ended, with the end of its log."""
        return socket.gethostname(), str(self._child.crash())

    def stop(self) -> None:
        """Make sure that the process is gone."""
        self._child.stop()


def _here(load: dict[str, Any]) -> dict[str, Any]:
    """Which checkpoints to load, with their directories on this machine."""
    places = {name: str(verified(url).path) for name, url in load.get(ADDRESSES, {}).items()}
    told = {name: value for name, value in load.items() if name != ADDRESSES}
    if "model" in places:
        told["model"] = places["model"]
    if "other" in places:
        told["mixture"] = {**told["mixture"], "other": places["other"]}
    return told
