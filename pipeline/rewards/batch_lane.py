"""The pool's end of a grader that takes many completions at once: one process, whatever the number of workers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import StageFailed, UserError
from pipeline.common.lines import encode, one_line
from pipeline.rewards.items import RewardItem, Score
from pipeline.rewards.process import Ended, GraderRefused, TimedOut, WorkerProcess
from pipeline.rewards.registry import environment_of

if TYPE_CHECKING:
    from pipeline.config.reward import RewardComponent, RewardConfig

LOADING_SECONDS = 3600.0
"""How long a grader may take to load its model or read its file. `timeout_seconds` does not count that."""
ATTEMPTS = 2
"""How often a batch is given to a process, should the process die over it."""
_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
_HUB = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")


class BatchLane:
    """Grades batches in the order they come. Used by one thread."""

    def __init__(
        self, config: RewardConfig, component: RewardComponent, directory: str, wake_fd: int, *, show_output: bool
    ) -> None:
        self.column = component.column
        self.notes: list[str] = []
        """What the grader said when it was ready."""
        self._place = config.components.index(component)
        self._component = component
        self._limit = config.timeout_seconds
        self._wake_fd, self._show_output = wake_fd, show_output
        self._worker: WorkerProcess | None = None
        self._start_message: dict[str, Any] = {
            "components": [{"grader": component.grader, "args": component.args}],
            "directory": directory,
            "memory_mib": None,
            "batches": True,
        }

    def start(self) -> None:
        """Start the process if it does not run, and wait until its grader is loaded.

        Raises:
            UserError: the grader cannot be used as it is configured.
            StageFailed: the process ended, or was not ready in time.
            Closing: the pool is being closed.
        """
        if self._worker is not None and self._worker.alive:
            return
        self.close()
        who = f"reward.components.{self._place} ({self._component.grader})"
        try:
            self._worker = WorkerProcess(
                self._start_message, self._wake_fd, show_output=self._show_output, environment=self._environment()
            )
            ready = self._worker.wait_until_ready(LOADING_SECONDS)
        except GraderRefused as error:
            self.close()
            raise UserError(f"{who}: {error}") from None
        except TimedOut:
            self.close()
            raise StageFailed(f"{who}: was not loaded within {LOADING_SECONDS:g} s") from None
        except Ended:
            raise StageFailed(f"{who}: did not start: {self.close()}") from None
        self._limit = ready["seconds_per_item"] or self._limit
        self.notes = [f"{self.column}: {note}" for note in ready["notes"]]

    def close(self) -> str:
        """End the process, if there is one; how it ended, in words."""
        worker, self._worker = self._worker, None
        return "" if worker is None else worker.end()

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        """A score for each item, in their order. Raises what `start` raises."""
        try:
            fields = [[i.completion, i.answer, i.prompt, i.group_id, i.sample_index] for i in items]
            line = encode(fields)
        except (TypeError, ValueError, RecursionError) as error:
            return [Score(None, one_line(f"the batch cannot be passed to a grader: {error}"))] * len(items)
        how = ""
        for _ in range(ATTEMPTS):
            self.start()
            assert self._worker is not None
            self._worker.send(line)
            limit = self._limit * len(items)
            try:
                reply = self._worker.receive(time.monotonic() + limit)
            except TimedOut:
                self.close()
                return [Score(None, f"no answer within {limit:g} s for {len(items)} completions")] * len(items)
            except Ended:
                how = self.close()
                continue
            return [_finite(Score(*fields)) for fields in reply["scores"]]
        return [Score(None, one_line(how))] * len(items)

    def _environment(self) -> dict[str, str]:
        """Devices, the hub's cache, and what the grader asks for by name, such as the variable that holds a key."""
        names = (*_DEVICES, *_HUB, *environment_of(self._component))
        return {name: os.environ[name] for name in names if name in os.environ}


def _finite(score: Score) -> Score:
    if score.error is None and (score.score is None or not math.isfinite(score.score)):
        return Score(None, f"returned {score.score}, expected a finite number", score.remark)
    return score
