"""The grade stage: reads stored rollouts shard by shard and writes them with the rewards of other graders.

Two things are asked of it. Where a run wants rollouts that differ from stored ones in their graders only, what it makes is what
generation would have made, byte for byte: sampling is seeded. And `rollbook grade` makes an artifact of its own, whose parent is
the graded one.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from pipeline.common.errors import DataError, UserError
from pipeline.config.reward import RewardConfig
from pipeline.generate.shards import group_id, remarks_name, remarks_of
from pipeline.generate.summary import read_scalars, summarize
from pipeline.generate.turns import episode_rewards, turn_figures, turns_beside, turns_name
from pipeline.generate.unknowns import count_unknowns
from pipeline.regrade.rows import each_row, items_of, of_last_rows, regraded
from pipeline.rewards.items import RewardItem, RewardResult, prompt_for_grader
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import check_prompts, places_of
from pipeline.run.process import Event, Reporter
from pipeline.sources.prompts import rows_of
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import verified
from pipeline.store.tables import check_columns
from schemas import Remarks, Rollouts, Turns
from schemas.rollouts import ends_episode

PROGRESS_SECONDS = 0.5
AHEAD = 2
"""Shards that are held at once: one is graded while the next waits."""


def grade(spec: Event, reporter: Reporter) -> Event:
    """Make the rollouts artifacts of a spec, going on from shards that an earlier attempt finished.

    Args:
        spec: store, reward, and jobs: a list of {request, rollouts (path of the artifact whose completions are graded),
            prompts (path of their prompts; null if they are not here)}.

    Returns:
        {"artifacts": paths, in the order of the jobs}.

    Raises:
        UserError: a grader that cannot be used, too many failed rewards.
        IntegrityError: the stored rollouts are not what their manifest says.
    """
    reward = RewardConfig.model_validate(spec["reward"])
    made = []
    with _LazyPool(reward, reporter) as pool:
        for job in spec["jobs"]:
            with Store(spec["store"], reporter.note).work(Request.from_json(job["request"])) as work:
                made.append(work if isinstance(work, Artifact) else _RegradeJob(work, job, reward).grade(pool, reporter))
    return {"artifacts": [str(artifact.path) for artifact in made]}


class _LazyPool:
    """A reward pool that starts when it is first needed."""

    def __init__(self, reward: RewardConfig, reporter: Reporter) -> None:
        self._reward, self._reporter = reward, reporter
        self._pool: RewardPool | None = None

    def __enter__(self) -> _LazyPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    @property
    def started(self) -> RewardPool:
        if self._pool is None:
            self._pool = RewardPool(self._reward).__enter__()
            for note in self._pool.notes:
                self._reporter.note(note)
        return self._pool


@dataclass(frozen=True)
class _RegradedShard:
    """Rows that are being graded."""

    name: str
    frame: pl.DataFrame
    grades: list[Future[list[RewardResult]]]
    """Of each group."""


class _RegradeJob:
    """One rollouts artifact to make."""

    def __init__(self, work: Work, job: Mapping[str, Any], reward: RewardConfig) -> None:
        self.work, self.reward = work, reward
        self.source = verified(job["rollouts"])
        self.prompts = _prompts(verified(job["prompts"])) if job["prompts"] else {}
        self.files = self.source.tables("rollouts")
        self.source.tables("turns")  # those are beside them then
        self.total = sum(file.rows or 0 for file in self.source.files if file.table and file.table.startswith("rollouts/"))
        self.failed = 0

    def grade(self, pool: _LazyPool, reporter: Reporter) -> Artifact:
        work = self.work
        work.require_space(sum(path.stat().st_size for path in self.files), f"{self.total:,} graded completions")
        self._check_prompts()
        missing = [path for path in self.files if not self._is_there(path.name)]
        meter = _RegradeMeter(reporter, sum(pq.read_metadata(path).num_rows for path in missing))
        waiting: deque[_RegradedShard] = deque()
        for path in missing:
            waiting.append(self._submitted(path, pool.started))
            if len(waiting) == AHEAD:
                self._write(waiting.popleft(), meter)
        while waiting:
            self._write(waiting.popleft(), meter)
        meter.report(last=True)
        files = [work.path / path.name for path in self.files]
        rows = read_scalars(files)
        errors = rows.filter(ends_episode(), pl.col("status") == "reward_error")["error"]
        self._refuse_many_failures(len(errors), errors)
        said = pool.started.notes if missing else []
        notes = {"graded_from": {"id": self.source.id, "place": self.source.url}, **places_of(self.reward.components)}
        turns = [path for file in files if (path := file.with_name(turns_name(file.name))).is_file()]
        summary = {**summarize(rows), **turn_figures(turns), **count_unknowns(self.source.summary, files, ())}
        return work.finish(summary, notes=notes | ({"graders_said": said} if said else {}))

    def _check_prompts(self) -> None:
        """Refuse prompts that the graders cannot be asked about. Where the prompts are not here, one row stands for all."""

        def asked() -> Iterable[Mapping[str, Any]]:
            if self.prompts:
                return self.prompts.values()
            first = pl.read_parquet(self.files[0], n_rows=1, glob=False)
            return [item.prompt for item in items_of(first, {})]

        check_prompts(self.reward.components, asked, self.source.url)

    def _is_there(self, name: str) -> bool:
        """Whether an earlier attempt wrote a file and all its rewards. Where rewards failed it is graded again."""
        self.work.has_table(remarks_name(name), Remarks)
        self.work.has_table(turns_name(name), Turns)
        if not self.work.has_table(name, Rollouts):
            return False
        return "reward_error" not in pl.read_parquet(self.work.path / name, columns=["status"], glob=False)["status"]

    def _submitted(self, path: Path, pool: RewardPool) -> _RegradedShard:
        check_columns(path, Rollouts)
        frame = pl.read_parquet(path, glob=False)
        if frame.is_empty():
            raise DataError(f"{path}: no rows to grade")
        turns = turns_beside(path)
        given = None if turns is None else episode_rewards(of_last_rows(turns, frame))
        ends = frame.filter(ends_episode())
        groups = itertools.groupby(items_of(ends, self.prompts, given), key=lambda item: item.group_id)
        return _RegradedShard(path.name, frame, [pool.submit(list[RewardItem](group)) for _, group in groups])

    def _write(self, shard: _RegradedShard, meter: _RegradeMeter) -> None:
        """Write a shard when it is graded."""
        results: list[RewardResult] = []
        for future in shard.grades:
            found = future.result()
            results += found
            meter.count(len(found))
        frame = regraded(
            shard.frame, each_row(results, shard.frame), self.source.manifest.content.key, self.work.request.key, self.reward
        )
        ends = frame.filter(ends_episode())
        names = zip(ends["group_id"], ends["sample_index"], results, strict=True)
        remarks = remarks_of((group, sample, result.remarks) for group, sample, result in names)
        if len(remarks):
            self.work.write_table(remarks_name(shard.name), remarks, Remarks)
        if (turns := turns_beside(self.source.file(shard.name))) is not None:
            old, new = (group_id("", key) for key in (self.source.manifest.content.key, self.work.request.key))
            renamed = turns.with_columns(pl.col("group_id").str.strip_suffix(old) + new)
            self.work.write_table(turns_name(shard.name), renamed, Turns)
        self.work.write_table(shard.name, frame, Rollouts)
        failed = ends.filter(pl.col("status") == "reward_error")["error"]
        self.failed += len(failed)
        self._refuse_many_failures(self.failed, failed)

    def _refuse_many_failures(self, failed: int, errors: pl.Series) -> None:
        if failed > self.reward.max_failed_share * self.total:
            raise UserError(
                f"{self.work.path}: {failed} of {self.total} rewards failed, more than "
                f"reward.max_failed_share={self.reward.max_failed_share}. One of them: {errors[0]}. What is graded is kept; mend "
                "that and run the same command again; max_failed_share, or --max-failed, allows more"
            )


class _RegradeMeter:
    """Progress in completions."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter, self._total = reporter, total
        self._done = 0
        self._told = time.monotonic()

    def count(self, completions: int) -> None:
        self._done += completions
        self.report()

    def report(self, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._reporter.progress(self._done, self._total, "completions")


def _prompts(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """What graders are given of each prompt, by its id."""
    return {row["prompt_id"]: prompt_for_grader(row) for row in rows_of(artifact)}
