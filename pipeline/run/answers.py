"""Who answers orders: the store alone, or processes of this machine. Each is one small object, and they compose.

A new place to work is one more class with this one method.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.run.order import Answerer, Job, Missing, Order
from pipeline.run.process import Event, OnEvent, Reporter
from pipeline.run.processes import Processes
from pipeline.run.status import seconds_of
from pipeline.store import Artifact, Store
from pipeline.store.files import write_text
from pipeline.store.store import load_artifact

Listener = Callable[[str, Event], None]
"""Called with an order's title and an event: started, progress, note, found, finished (with the seconds of its artifacts)."""


def quiet(title: str, event: Event) -> None:
    """Tells nobody."""


class Look:
    """Finds what is finished, and makes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        """
        Raises:
            Missing: a part of the order is not finished.
        """
        found = []
        for request in order.requests:
            artifact = self._store.find(request)
            if artifact is None:
                raise Missing(order.title)
            found.append(artifact)
        return tuple(found)


class Local:
    """Finds what is finished, and has a process of this machine do the rest.

    Args:
        store: where artifacts lie.
        processes: those that do the work.
        logs: directory of their logs, one file a title.
        listener: called with what happens.
    """

    def __init__(self, store: Store, processes: Processes, logs: Path, listener: Listener = quiet) -> None:
        self._store, self._processes, self._logs, self._listener = store, processes, logs, listener

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        found = {request.key: artifact for request in order.requests if (artifact := self._store.find(request))}
        missing = [job for job in order.jobs if job.request.key not in found]
        if missing:
            made = [load_artifact(path) for path in self._made(order, missing)]
            found |= {job.request.key: artifact for job, artifact in zip(missing, made, strict=True)}
            if not order.here:
                self._listener(order.title, {"event": "finished", "seconds": seconds_of(*made)})
        else:
            self._listener(order.title, {"event": "found"})
        return tuple(found[request.key] for request in order.requests)

    def warm_up(self, module: str) -> None:
        """Start the process of a stage early: it loads its libraries while something else goes on."""
        self._processes.warm_up(module, self._logs / "warm-up.log")

    def _made(self, order: Order, jobs: Sequence[Job]) -> list[str]:
        """Have the work done. Returns the artifacts' paths."""
        spec = spec_for(self._store, order, jobs)
        on_event: OnEvent = lambda event: self._listener(order.title, event)  # noqa: E731
        if order.here:
            return list(importlib.import_module(order.module).work(spec, _Here(on_event))["artifacts"])
        if order.then:
            self.warm_up(order.then)
        on_event({"event": "started"})
        result = self._processes.run(order.module, spec, self._logs / f"{order.title.replace(' ', '-')}.log", on_event)
        return list(result["artifacts"])


class WritesDown:
    """Writes down what a stage would be given for one order, instead of having that done.

    Args:
        inner: answers every other order.
        store: where the order's artifacts would lie.
        title: of the order.
        out: the file to write.
    """

    def __init__(self, inner: Answerer, store: Store, title: str, out: Path) -> None:
        self._inner, self._store, self._title, self._out = inner, store, title, out

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        """
        Raises:
            Missing: the order was written down.
        """
        if order.title != self._title or all(self._store.find(request) for request in order.requests):
            return self._inner.answer(order)
        write_text(self._out, json.dumps(spec_for(self._store, order, order.jobs), indent=2) + "\n")
        raise Missing(order.title)


def spec_for(store: Store, order: Order, jobs: Sequence[Job]) -> dict[str, Any]:
    """What a stage's process is given to make some jobs of an order in a store."""
    return {"store": str(store.root), **order.spec(jobs)}


class _Here(Reporter):
    """The reporter of work that is done in the process that asks."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event

    def send(self, event: str, **fields: Any) -> None:
        self._on_event({"event": event, **fields})
