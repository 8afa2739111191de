"""Stage processes that live on: a stage that comes again finds its libraries imported, and vLLM started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.common.device import has_gpu
from pipeline.common.room import MemoryRoom, shared_room
from pipeline.run.process import Event, NeedsFreshProcess, OnEvent, StageProcess

ON_GPU = frozenset({"pipeline.generate", "pipeline.revise", "pipeline.score", "pipeline.train"})
"""Stages that hold a model. On a GPU such a process ends with its work, so that the next stage has all of its memory; on a CPU an
idle one ends where memory is short."""
PLENTY = 3
"""Times the memory of idle stages that must be free for them to be kept while another one works."""
EARLY_BYTES = 6 << 30
"""What must be free for a process that will hold a model to be started before its turn."""


class Processes:
    """At most one idle process per stage module, started when it is first needed.

    Args:
        environment: variables added to this process's own.
        room: what memory all processes can still have together.
    """

    def __init__(self, environment: Mapping[str, str], room: Callable[[], MemoryRoom] = shared_room) -> None:
        self._environment, self._room = environment, room
        self._idle: dict[str, StageProcess] = {}

    def warm_up(self, module: str, log: Path) -> None:
        """Have a process for a module that will soon be needed: it loads its libraries while something else goes on."""
        if module not in self._idle and (module not in ON_GPU or self._room().free >= EARLY_BYTES):
            self._idle[module] = StageProcess(module, log, self._environment)

    def run(self, module: str, spec: Event, log: Path, on_event: OnEvent) -> Event:
        """One piece of work, in the module's idle process or else in a new one.

        Raises:
            UserError, StageFailed: as `StageProcess.run`.
        """
        process = self._idle.pop(module, None)
        self._make_room(module)
        if process is not None and process.is_alive:
            try:
                return self._keep(module, process, process.run(spec, log, on_event))
            except NeedsFreshProcess:
                pass
        process = StageProcess(module, log, self._environment)
        return self._keep(module, process, process.run(spec, log, on_event))

    def _make_room(self, module: str) -> None:
        """End idle processes that hold a model, before another stage with one begins, if memory is short."""
        others = {name: process for name, process in self._idle.items() if {name, module} <= ON_GPU}
        held = sum(process.memory for process in others.values())
        if held and self._room().free < PLENTY * held:
            for name, process in others.items():
                process.end()
                del self._idle[name]

    def _keep(self, module: str, process: StageProcess, result: Event) -> Event:
        if has_gpu() and module in ON_GPU:
            process.end()
        else:
            self._idle[module] = process
        return result

    def close(self) -> None:
        """End every process."""
        for process in self._idle.values():
            process.end()
        self._idle.clear()
