"""Shards on their way from their last completion to the disk: graded, checked and written beside the engine's work."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardConfig
from pipeline.generate.engine import Reply
from pipeline.generate.shards import Shard, remarks_name
from pipeline.generate.turns import turns_name
from pipeline.rewards.pool import RewardPool
from pipeline.store import Work
from schemas import Remarks, Rollouts, Turns
from schemas.rollouts import ENVIRONMENT_ERROR, ends_episode

MOST_UNGRADED = 8
"""Shards that may wait for their grades: where graders are slower than the engine, the engine waits, and memory stays bounded."""


class ShardWriter:
    """Takes completions, has whole groups graded, and writes each shard once all of it is: a context manager.

    A thread of its own writes. What it cannot do is raised by the next call; leaving the block with an error leaves the rest.

    Args:
        works: the artifacts in the making, by the number of their job.
        reward: how many failures are too many.
        tokenizer: spells completions.
        known: the ids that it spells.
        pool: graders.
        most_environment_errors: largest share of completions whose environment may fail.
    """

    def __init__(
        self,
        works: Mapping[int, Work],
        reward: RewardConfig,
        tokenizer: Any,
        known: Collection[int],
        pool: RewardPool,
        most_environment_errors: float = 1.0,
    ) -> None:
        self._works, self._reward, self._tokenizer, self._known, self._pool = works, reward, tokenizer, known, pool
        self._failed = dict.fromkeys(works, 0)
        self._stuck = dict.fromkeys(works, 0)
        self._most_stuck = most_environment_errors
        self._ready: SimpleQueue[Shard | None] = SimpleQueue()
        self._change = threading.Condition()
        self._unwritten = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write_all, name="writer", daemon=True)

    def __enter__(self) -> ShardWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._hold(0)
        finally:
            self._ready.put(None)
            self._thread.join()

    def add(self, shard: Shard, reply: Reply) -> None:
        """Take a finished completion."""
        shard.add(reply, self._tokenizer, self._pool)
        if shard.is_answered:
            self._take(shard)

    def restore(self, shard: Shard, frame: pl.DataFrame, turns: pl.DataFrame | None = None) -> None:
        """Take a shard of an earlier attempt, to be graded again.

        Args:
            turns: of its episodes, if it has any.
        """
        shard.restore(frame, turns, self._tokenizer, self._pool)
        self._take(shard)

    def hold(self) -> None:
        """Wait until few enough shards lack nothing but grades and their file."""
        self._hold(MOST_UNGRADED)

    def _take(self, shard: Shard) -> None:
        with self._change:
            self._unwritten += 1
        shard.when_graded(lambda: self._ready.put(shard))

    def _hold(self, most: int) -> None:
        with self._change:
            self._change.wait_for(lambda: self._unwritten <= most or self._error is not None)
        if self._error is not None:
            raise self._error

    def _write_all(self) -> None:
        while (shard := self._ready.get()) is not None:
            try:
                if self._error is None:
                    self._write(shard)
            except BaseException as error:
                self._error = error
            with self._change:
                self._unwritten -= 1
                self._change.notify_all()

    def _write(self, shard: Shard) -> None:
        work = self._works[shard.job.number]
        frame = shard.frame(self._reward)
        if len(remarks := shard.remarks(self._known)):
            work.write_table(remarks_name(shard.name), remarks, Remarks)
        if len(turns := shard.turns()):
            work.write_table(turns_name(shard.name), turns, Turns)
        work.write_table(shard.name, frame, Rollouts)
        shard.forget()
        frame = frame.filter(ends_episode())
        self._refuse_stuck(shard, frame.filter(pl.col("status") == ENVIRONMENT_ERROR))
        failed = frame.filter(pl.col("status") == "reward_error")
        self._failed[shard.job.number] += len(failed)
        completions = len(shard.job.groups) * shard.job.samples
        refuse_many_failures(self._failed[shard.job.number], completions, failed["error"], self._reward, work)

    def _refuse_stuck(self, shard: Shard, stuck: pl.DataFrame) -> None:
        number, completions = shard.job.number, len(shard.job.groups) * shard.job.samples
        self._stuck[number] += len(stuck)
        if self._stuck[number] > self._most_stuck * completions:
            raise UserError(
                f"{self._works[number].path}: the environment failed in {self._stuck[number]} of {completions} episodes, more "
                f"than environment.max_failed_share={self._most_stuck}. One of the errors: {stuck['error'][0]}. Mend the "
                "environment and run the same command again; shards without such errors are kept"
            )


def refuse_many_failures(failed: int, completions: int, errors: pl.Series, reward: RewardConfig, work: Work) -> None:
    """Stop as soon as the failures are too many for the whole job, however few of its completions are there yet."""
    if failed > reward.max_failed_share * completions:
        raise UserError(
            f"{work.path}: {failed} of {completions} rewards failed, more than reward.max_failed_share="
            f"{reward.max_failed_share}. One of them: {errors[0]}. The rollouts are kept; mend the grader and run the same "
            "command again"
        )
