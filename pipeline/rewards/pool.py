"""Grade completions in worker processes, beside whatever this process does."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.rewards.batch_lane import BatchLane
from pipeline.rewards.items import RewardItem, RewardResult, Score, required_to_apply, weighted
from pipeline.rewards.lane import Lane
from pipeline.rewards.process import Closing
from pipeline.rewards.registry import BATCHED

if TYPE_CHECKING:
    from pipeline.config.reward import RewardConfig

__all__ = ["RewardItem", "RewardPool", "RewardResult"]

LARGEST_CHUNK = 64
"""Items that one worker takes at a time."""
LARGEST_BATCH = 128
"""Items in several groups that a grader of batches is given at once."""


@dataclass(slots=True)
class _Submission:
    """One call of `submit`."""

    items: Sequence[RewardItem]
    results: list[RewardResult | None]
    missing: int
    """Chunks without a result."""
    batched: dict[str, list[Score]] = field(default_factory=dict)
    """What graders of batches said, by the component's column."""
    future: Future[list[RewardResult]] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Piece:
    job: _Submission
    start: int
    stop: int


_Queue = deque[_Piece]


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
        batched = [component for component in config.components if component.grader in BATCHED]
        single = tuple(component for component in config.components if component.grader not in BATCHED)
        self._single = config.model_copy(update={"components": single}) if single else None
        self._batched = {component.column: component for component in batched}
        self._lanes: list[Lane] = []
        self._batch_lanes: list[BatchLane] = []
        self._chunks: _Queue = deque()
        self._batches: dict[str, _Queue] = {column: deque() for column in self._batched}
        self._jobs: dict[int, _Submission] = {}
        self._open = False
        self._broken: BaseException | None = None
        self._wake: tuple[int, int] | None = None

    def __enter__(self) -> RewardPool:
        """Start the workers: `workers` of them for the graders of single completions, and one for each grader of batches.

        Raises:
            UserError: a grader cannot be found, called or prepared; the message names the component.
            StageFailed: a worker ends before it is ready.
        """
        if self._threads:
            raise RuntimeError("a RewardPool can be entered once")
        self._wake = os.pipe()
        self._open = True
        directory = os.getcwd()
        workers: list[Future[None]] = []
        for _ in range(self._config.workers if self._single else 0):
            assert self._single is not None
            lane = Lane(self._single, directory, self._wake[0], show_output=self._show_output)
            self._lanes.append(lane)
            workers.append(self._started(lane))
        batches: list[Future[None]] = []
        for component in self._batched.values():
            batch_lane = BatchLane(self._config, component, directory, self._wake[0], show_output=self._show_output)
            self._batch_lanes.append(batch_lane)
            batches.append(self._started(batch_lane))
        try:
            for future in wait(workers, return_when=FIRST_COMPLETED).done if workers else ():
                future.result()
            for future in batches:
                future.result()
        except BaseException:
            self.close()
            raise
        return self

    def _started(self, lane: Lane | BatchLane) -> Future[None]:
        """A thread that serves a lane. The future is done when the lane's process is ready."""
        ready: Future[None] = Future()
        thread = threading.Thread(target=self._serve, args=(lane, ready), name=f"reward-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return ready

    @property
    def notes(self) -> list[str]:
        """What graders said when they were ready, such as how far annotators agree."""
        single = next((lane.notes for lane in self._lanes if lane.notes), [])
        return [*single, *(note for lane in self._batch_lanes for note in lane.notes)]

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
        starts = range(0, len(items), size) if self._single else range(0)
        job = _Submission(items, [None] * len(items), len(starts) + len(self._batched))
        with self._change:
            if not self._open:
                raise RuntimeError("this RewardPool is not open; use it as a context manager")
            if self._broken is None and items:
                self._jobs[id(job)] = job
                self._chunks.extend(_Piece(job, start, min(start + size, len(items))) for start in starts)
                for queue in self._batches.values():
                    queue.append(_Piece(job, 0, len(items)))
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

    def _serve(self, lane: Lane | BatchLane, ready: Future[None]) -> None:
        """A lane's thread: start its process and take chunks until the pool closes."""
        try:
            lane.start()
            ready.set_result(None)
            while self._take(lane):
                pass
        except Closing as error:
            if not ready.done():
                ready.set_exception(error)
        except BaseException as error:
            self._break(error)
            if not ready.done():
                ready.set_exception(error)
        finally:
            lane.close()

    def _take(self, lane: Lane | BatchLane) -> bool:
        """Grade what is next; of batches, as much as is good at once. False when the pool closes."""
        if isinstance(lane, Lane):
            chunks = self._next(self._chunks, 1)
            for chunk in chunks:
                items = chunk.job.items[chunk.start : chunk.stop]
                results = [] if chunk.job.future.cancelled() else lane.grade(items)
                with self._change:
                    chunk.job.results[chunk.start : chunk.start + len(results)] = results
        else:
            chunks = self._next(self._batches[lane.column], LARGEST_BATCH)
            wanted = [chunk.job for chunk in chunks if not chunk.job.future.cancelled()]
            scores = lane.grade([item for job in wanted for item in job.items]) if wanted else []
            for job in wanted:
                job.batched[lane.column], scores = scores[: len(job.items)], scores[len(job.items) :]
        for chunk in chunks:
            self._finish(chunk.job)
        return bool(chunks)

    def _next(self, queue: _Queue, items: int) -> list[_Piece]:
        """The next chunk of a queue, and those behind it while all have at most so many items; [] when the pool closes."""
        with self._change:
            while self._open and not queue:
                self._change.wait()
            chunks: list[_Piece] = []
            while self._open and queue and (not chunks or items >= len(queue[0].job.items)):
                chunks.append(queue.popleft())
                items -= len(chunks[-1].job.items)
            return chunks

    def _finish(self, job: _Submission) -> None:
        """Count a part of a job as done. With the last one, its results are told."""
        with self._change:
            job.missing -= 1
            if job.missing or self._jobs.pop(id(job), None) is None:
                return
        if job.future.set_running_or_notify_cancel():
            job.future.set_result([self._result(job, number) for number in range(len(job.items))])

    def _result(self, job: _Submission, number: int) -> RewardResult:
        """What all graders said of one item."""
        single = job.results[number]
        if not self._batched:
            assert single is not None
            return required_to_apply(single)
        batched = {column: scores[number] for column, scores in job.batched.items()}
        known = {**(single.components if single else {}), **{column: score.score for column, score in batched.items()}}
        errors = [single.error] if single and single.error else []
        errors += [f"{column}: {score.error}" for column, score in sorted(batched.items()) if score.error]
        components = {component.column: known[component.column] for component in self._config.components}
        result = weighted(components, [component.weight for component in self._config.components], errors)
        remarks = {column: score.remark for column, score in batched.items() if score.remark is not None}
        return required_to_apply(replace(result, remarks={**(single.remarks if single else {}), **remarks}))

    def _break(self, error: BaseException) -> None:
        """Workers cannot be kept running: whoever waits for results is told."""
        with self._change:
            self._broken = self._broken or error
        for job in self._take_all_jobs():
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _take_all_jobs(self) -> list[_Submission]:
        with self._change:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            for queue in (self._chunks, *self._batches.values()):
                queue.clear()
        return jobs
