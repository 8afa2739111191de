"""Where engines' processes come from: this machine, or whatever else can start them and pass on what they say."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pipeline.common.errors import StageFailed, UserError
from pipeline.config.engine import EngineConfig
from pipeline.generate.engines.devices import shares
from pipeline.run.child import Child, Event
from pipeline.run.process import own_log

MODULE = "pipeline.generate.engines"
PIPE_BYTES = 1 << 20
"""Room for what an engine says while nobody listens."""


class EngineProcess(Protocol):
    """An engine's process as its caller sees it; see `pipeline.run.child.Child`."""

    def tell(self, message: Event) -> None: ...
    def events(self) -> Iterator[Event]: ...
    def logs_to(self, log: Path) -> None: ...
    def error(self, event: Event) -> UserError: ...
    def crash(self) -> StageFailed: ...
    def stop(self) -> None: ...
    def end(self) -> None: ...


class Hands(Protocol):
    """What starts engines' processes."""

    @property
    def count(self) -> int:
        """How many engines there should be."""

    @property
    def needed(self) -> int:
        """How many of them must be there before work begins. The others join it when they come."""

    def process(self, number: int) -> EngineProcess:
        """A process for an engine that has no work yet."""


class ThisMachine:
    """Processes of this machine, each with devices of its own.

    Args:
        spare: a process that was started early, for the only engine.

    Raises:
        UserError: there are not as many devices.
    """

    def __init__(self, config: EngineConfig, spare: Child | None = None) -> None:
        self._shares, self._spare = shares(config), spare
        if len(self._shares) > 1:
            self._drop()

    @property
    def count(self) -> int:
        return len(self._shares)

    @property
    def needed(self) -> int:
        return self.count

    def process(self, number: int) -> Child:
        early, self._spare = self._spare, None
        return early or spare(self._shares[number])

    def _drop(self) -> None:
        if self._spare:
            self._spare.end()
        self._spare = None


def spare(environment: Mapping[str, str] | None = None) -> Child:
    """A process for an engine on this machine, which loads its libraries."""
    child = Child(MODULE, own_log(), environment or {})
    with contextlib.suppress(OSError, AttributeError):  # not every system lets pipes grow
        fcntl.fcntl(child.output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return child
