"""Stage processes that live on: a stage that comes again finds its libraries imported, and vLLM started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.common.device import has_gpu
from pipeline.run.process import Event, NeedsFreshProcess, OnEvent, StageProcess

ON_GPU = frozenset({"pipeline.generate", "pipeline.score", "pipeline.train"})
"""Stages that take the GPU's memory. There such a process ends with its work, so that the next stage has all of it."""


class Processes:
    """At most one idle process per stage module, started when it is first needed.

    Args:
        environment: variables added to this process's own.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._idle: dict[str, StageProcess] = {}

    def warm_up(self, module: str, log: Path) -> None:
        """Have a process for a module that will soon be needed: it loads its libraries while something else goes on."""
        if module not in self._idle:
            self._idle[module] = StageProcess(module, log, self._environment)

    def run(self, module: str, spec: Event, log: Path, on_event: OnEvent) -> Event:
        """One piece of work, in the module's idle process or else in a new one.

        Raises:
            UserError, StageFailed: as `StageProcess.run`.
        """
        process = self._idle.pop(module, None)
        if process is not None and process.is_alive:
            try:
                return self._keep(module, process, process.run(spec, log, on_event))
            except NeedsFreshProcess:
                pass
        process = StageProcess(module, log, self._environment)
        return self._keep(module, process, process.run(spec, log, on_event))

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
