"""Grade completions in worker processes, beside whatever this process does."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.rewards.lane import Lane, RewardItem, RewardResult
from pipeline.rewards.process import Closing

if TYPE_CHECKING:
    from pipeline.config import RewardConfig

__all__ = ["RewardItem", "RewardPool", "RewardResult"]

LARGEST_CHUNK = 64
"""Items that one worker takes at a time."""


@dataclass(slots=True)
class _Job:
    """One call of `submit`."""

    items: Sequence[RewardItem]
    results: list[RewardResult | None]
    missing: int
    """Chunks without a result."""
    future: Future[list[RewardResult]] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Chunk:
    job: _Job
    start: int
    stop: int


class RewardPool:
    """Worker processes that grade completions: a context manager.

    ::

        with RewardPool(config.reward) as pool:
            future = pool.submit([RewardItem(completion, answer, prompt) for ...])
            ...
            results = future.result()

    Entering it waits for the first worker, so that a grader that cannot be used is an error at once. Leaving it cancels
    what is outstanding and ends every worker and every process that a grader started; so does the end of this process,
    however it comes. Equal items get equal results, whatever the number of workers.

    Args:
        config: graders, number of workers, and the limits of time and memory.
        show_output: print what graders print, on standard error. Otherwise only their last line is kept, for the error
            of a worker that died.
    """

    def __init__(self, config: RewardConfig, *, show_output: bool = False) -> None:
        self._config = config
        self._show_output = show_output
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self._chunks: deque[_Chunk] = deque()
        self._jobs: dict[int, _Job] = {}
        self._open = False
        self._broken: BaseException | None = None
        self._wake: tuple[int, int] | None = None

    def __enter__(self) -> RewardPool:
        """Start the workers.

        Raises:
            UserError: a grader cannot be found, called or prepared; the message names the component.
            StageFailed: a worker ends before it is ready.
        """
        if self._threads:
            raise RuntimeError("a RewardPool can be entered once")
        self._wake = os.pipe()
        self._open = True
        ready: list[Future[None]] = [Future() for _ in range(self._config.workers)]
        directory = os.getcwd()
        for i, future in enumerate(ready):
            lane = Lane(self._config, directory, self._wake[0], show_output=self._show_output)
            thread = threading.Thread(target=self._serve, args=(lane, future), name=f"reward-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            for future in wait(ready, return_when=FIRST_COMPLETED).done:
                future.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def submit(self, items: Sequence[RewardItem]) -> Future[list[RewardResult]]:
        """Grade items in the background.

        Returns:
            A future of one result per item, in the order of the items. A completion that cannot be graded is a result
            with an error. The future itself fails only if the workers cannot be kept running (UserError), and is
            cancelled when the pool closes first.

        Raises:
            RuntimeError: the pool is not open.
        """
        items = tuple(items)
        size = max(1, min(LARGEST_CHUNK, len(items) // (4 * self._config.workers)))
        starts = range(0, len(items), size)
        job = _Job(items, [None] * len(items), len(starts))
        with self._change:
            if not self._open:
                raise RuntimeError("this RewardPool is not open; use it as a context manager")
            if self._broken is None and items:
                self._jobs[id(job)] = job
                self._chunks.extend(_Chunk(job, start, min(start + size, len(items))) for start in starts)
                self._change.notify_all()
                return job.future
        if self._broken is not None:
            job.future.set_exception(self._broken)
        else:
            job.future.set_result([])
        return job.future

    def close(self) -> None:
        """End the workers and cancel what is outstanding. Harmless when done twice."""
        with self._change:
            if not self._open:
                return
            self._open = False
            self._change.notify_all()
            assert self._wake is not None
            os.write(self._wake[1], b"x")  # never read: it stays visible to every lane
        for job in self._take_all_jobs():
            job.future.cancel()
            job.future.set_running_or_notify_cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for fd in self._wake:
            os.close(fd)

    def _serve(self, lane: Lane, ready: Future[None]) -> None:
        """A lane's thread: take chunks until the pool closes."""
        try:
            lane.start()
            ready.set_result(None)
            while (chunk := self._next_chunk()) is not None:
                items = chunk.job.items[chunk.start : chunk.stop]
                results = [] if chunk.job.future.cancelled() else lane.grade(items)
                self._finish(chunk, results)
        except Closing as error:
            if not ready.done():
                ready.set_exception(error)
        except BaseException as error:
            self._break(error)
            if not ready.done():
                ready.set_exception(error)
        finally:
            lane.close()

    def _next_chunk(self) -> _Chunk | None:
        with self._change:
            while self._open and not self._chunks:
                self._change.wait()
            return self._chunks.popleft() if self._open else None

    def _finish(self, chunk: _Chunk, results: list[RewardResult]) -> None:
        job = chunk.job
        with self._change:
            job.results[chunk.start : chunk.start + len(results)] = results
            job.missing -= 1
            if job.missing or self._jobs.pop(id(job), None) is None:
                return
        if job.future.set_running_or_notify_cancel():
            job.future.set_result([result for result in job.results if result is not None])

    def _break(self, error: BaseException) -> None:
        """Workers cannot be kept running: whoever waits for results is told."""
        with self._change:
            self._broken = self._broken or error
        for job in self._take_all_jobs():
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _take_all_jobs(self) -> list[_Job]:
        with self._change:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._chunks.clear()
        return jobs
