"""One lane of a pool: a worker and its replacements, grading one item after the other under the time limit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.common.errors import StageFailed, UserError
from pipeline.common.lines import encode, one_line
from pipeline.rewards.items import RewardItem, RewardResult, weighted
from pipeline.rewards.process import STARTUP_SECONDS, Ended, GraderRefused, TimedOut, WorkerProcess

if TYPE_CHECKING:
    from pipeline.config.reward import RewardConfig

START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What a worker said of one item."""

    scores: list[float | None]
    errors: list[str]
    remarks: dict[str, str]
    """By the component's column."""
    lost: bool = False
    """The worker cannot go on."""
    again: bool = False
    """It may be the fault of items that it graded before."""


class Lane:
    """Grades items in their order. Used by one thread.

    A worker that hangs, dies, runs out of memory or leaves processes behind is replaced. Where earlier items may be to
    blame, for what they left in the worker's memory, the item is graded once more in a fresh worker: its result is then
    its own, and does not depend on which items shared its worker.
    """

    def __init__(self, config: RewardConfig, directory: str, wake_fd: int, *, show_output: bool) -> None:
        self._config = config
        self._columns = [component.column for component in config.components]
        self._wake_fd = wake_fd
        self._show_output = show_output
        self._worker: WorkerProcess | None = None
        self.notes: list[str] = []
        """What graders said when they were ready."""
        self._start_message = {
            "components": [{"grader": c.grader, "args": c.args} for c in config.components],
            "directory": directory,
            "memory_mib": config.memory_mib,
        }

    def start(self) -> None:
        """Start a worker if none is ready, and wait for its imports.

        Raises:
            UserError: a grader cannot be used as it is configured.
            StageFailed: three workers in a row ended while they started, or one was not ready in time.
            Closing: the pool is being closed.
        """
        if self._worker is not None and self._worker.alive:
            return
        self.close()
        limit = f"reward.memory_mib is {self._config.memory_mib}"
        for _ in range(START_ATTEMPTS):
            try:
                self._worker = WorkerProcess(self._start_message, self._wake_fd, show_output=self._show_output)
                self.notes = self._worker.wait_until_ready()["notes"]
                return
            except GraderRefused as error:
                self.close()
                raise UserError(str(error)) from None
            except TimedOut:
                self.close()
                raise StageFailed(f"a reward worker was not ready within {STARTUP_SECONDS:g} s ({limit})") from None
            except Ended:
                how = self.close()
            except OSError as error:
                how = f"{type(error).__name__}: {error}"
                self.close()
        raise StageFailed(f"a reward worker did not start, {START_ATTEMPTS} times over ({limit}): {how}")

    def close(self) -> str:
        """End the worker, if there is one; how it ended, in words."""
        worker, self._worker = self._worker, None
        return "" if worker is None else worker.end()

    def grade(self, items: Sequence[RewardItem]) -> list[RewardResult]:
        """A result for each item, in their order. Raises what `start` raises."""
        results: dict[int, RewardResult] = {}
        waiting: deque[tuple[int, bytes]] = deque()
        for i, item in enumerate(items):
            try:
                told = {"finish_reason": item.finish_reason, "episode_reward": item.episode_reward}
                waiting.append((i, encode([item.completion, item.answer, item.prompt, told])))
            except (TypeError, ValueError, RecursionError) as error:
                results[i] = self._failed(f"the item cannot be passed to a grader: {error}")
        while waiting:
            self.start()
            assert self._worker is not None
            self._worker.send(b"".join(line for _, line in waiting))
            while waiting:
                attempt = self._converse(self._worker)
                if not attempt.again:
                    results[waiting.popleft()[0]] = self._result(attempt)
                if attempt.lost:
                    break
        return [results[i] for i in range(len(items))]

    def _converse(self, worker: WorkerProcess) -> _Attempt:
        """Wait for one item's replies. The clock starts here: the worker begins the item when it ended the last one."""
        fresh, worker.fresh = worker.fresh, False
        limit = self._config.timeout_seconds
        deadline = time.monotonic() + limit
        scores: list[float | None] = []
        errors: list[str] = []
        remarks: dict[str, str] = {}
        lost = again = False
        for column in self._columns:
            try:
                reply = worker.receive(deadline)
            except TimedOut:
                self.close()
                reply = {"error": f"no answer within {limit:g} s", "retire": "time"}
            except Ended:
                again = not fresh
                reply = {"error": self.close(), "retire": "end"}
            scores.append(reply.get("score"))
            if "remark" in reply:
                remarks[column] = reply["remark"]
            if "error" in reply:
                errors.append(f"{column}: {reply['error']}")
            if "retire" in reply:
                lost = True
                again = again or (reply["retire"] == "memory" and not fresh)
                self.close()
                break
        return _Attempt(scores, errors, remarks, lost, again)

    def _result(self, attempt: _Attempt) -> RewardResult:
        missing: list[float | None] = [None] * (len(self._columns) - len(attempt.scores))
        components = dict(zip(self._columns, attempt.scores + missing, strict=True))
        result = weighted(components, [component.weight for component in self._config.components], attempt.errors)
        return replace(result, remarks=attempt.remarks)

    def _failed(self, reason: str) -> RewardResult:
        return RewardResult(None, dict.fromkeys(self._columns), one_line(f"{self._columns[0]}: {reason}"))
