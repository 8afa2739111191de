"""Shards: whole groups of one job, filled as completions finish, written once all are graded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from pipeline.config import RewardConfig, SamplingConfig
from pipeline.generate.engine import Ask, Reply
from pipeline.generate.seeds import completion_seed
from pipeline.rewards.lane import RewardItem, RewardResult
from pipeline.rewards.pool import RewardPool
from schemas import Rollouts


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class Group:
    """One prompt to answer."""

    row: dict[str, Any]
    """The prompt's row in the prompts table."""
    prompt_token_ids: list[int]
    repeat: int = 0
    """How often the artifact has the prompt already: an iteration may want more groups than there are prompts."""

    @property
    def name(self) -> str:
        """The prompt's id, told apart from that of an earlier group of the same prompt."""
        return f"{self.row['prompt_id']}#{self.repeat}" if self.repeat else str(self.row["prompt_id"])


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rollouts artifact to make: its groups, and what every row of it has in common."""

    number: int
    key: str
    groups: list[Group]
    samples: int
    sampling: SamplingConfig
    purpose: str
    iteration: int | None
    run_seed: int
    policy_id: str
    policy_version: int
    engine: str

    def seed(self, group: Group, sample: int) -> int:
        return completion_seed(self.run_seed, self.purpose, self.iteration, group.name, sample)

    def asks(self, shard: Shard) -> Iterator[Ask]:
        for number in range(shard.start, shard.stop):
            group = self.groups[number]
            for sample in range(self.samples):
                yield Ask((self.number, number, sample), group.prompt_token_ids, self.sampling, self.seed(group, sample))


@dataclass
class Shard:
    """A run of groups that go into one file."""

    job: Job
    name: str
    start: int
    stop: int
    replies: dict[int, list[Reply]] = field(default_factory=dict)
    grades: dict[int, Future[list[RewardResult]]] = field(default_factory=dict)

    def add(self, reply: Reply, tokenizer: Decoder, pool: RewardPool) -> None:
        """Take a finished completion; once its group is whole, hand the group to the graders."""
        number = reply.key[1]
        group = self.replies.setdefault(number, [])
        group.append(reply)
        if len(group) == self.job.samples:
            group.sort(key=lambda reply: reply.key[2])
            prompt = self.job.groups[number].row
            items = [RewardItem(text_of(reply, tokenizer), prompt["answer"], prompt_for_grader(prompt)) for reply in group]
            self.grades[number] = pool.submit(items)

    def restore(self, frame: pl.DataFrame, tokenizer: Decoder, pool: RewardPool) -> None:
        """Take the completions that an earlier attempt wrote (`frame`'s rows), to grade them again."""
        for number, row in enumerate(frame.iter_rows(named=True)):
            key = (self.job.number, self.start + number // self.job.samples, row["sample_index"])
            error = row["error"] if row["status"] == "engine_error" else None
            logprobs = row["behavior_logprobs"] or []
            reply = Reply(key, row["completion_token_ids"], logprobs, row["finish_reason"], row["completion_text"], error)
            self.add(reply, tokenizer, pool)

    @property
    def is_graded(self) -> bool:
        return len(self.grades) == self.stop - self.start and all(grade.done() for grade in self.grades.values())

    def frame(self, tokenizer: Decoder, reward: RewardConfig) -> pl.DataFrame:
        """The shard's rows, in the order of the prompts."""
        rows = []
        for number in range(self.start, self.stop):
            for reply, grade in zip(self.replies[number], self.grades[number].result(), strict=True):
                rows.append(_row(self.job, self.job.groups[number], reply, grade, tokenizer))
        columns = [component.column for component in reward.components]
        types = {name: column.dtype for name, column in Rollouts.columns().items()} | dict.fromkeys(columns, pl.Float64)
        return pl.DataFrame(rows, schema=types)


def shards_of(job: Job, size: int) -> list[Shard]:
    """Cut a job into files of `size` groups."""
    starts = range(0, len(job.groups), size)
    return [Shard(job, f"part-{i:05d}.parquet", s, min(s + size, len(job.groups))) for i, s in enumerate(starts)]


def text_of(reply: Reply, tokenizer: Decoder) -> str:
    return tokenizer.decode(reply.token_ids, skip_special_tokens=True) if reply.text is None else reply.text


def prompt_for_grader(row: dict[str, Any]) -> dict[str, Any]:
    """The prompt's row with the dataset's other columns unfolded."""
    return {**row, "metadata": json.loads(row["metadata"]) if row["metadata"] else {}}


def _row(job: Job, group: Group, reply: Reply, grade: RewardResult, tokenizer: Decoder) -> dict[str, Any]:
    sample = reply.key[2]
    logprobs: list[float] | None = reply.logprobs
    error = reply.error
    if len(reply.logprobs) != len(reply.token_ids) or not all(map(math.isfinite, reply.logprobs)):
        logprobs = None
        error = error or "the engine gave no finite logprob for every token"
    status = "ok"
    if error is not None:
        status = "engine_error"
    elif grade.error is not None:
        status, error = "reward_error", grade.error
    elif reply.finish_reason == "length":
        status = "truncated"
    return {
        "group_id": f"{group.name}@{job.key[:8]}",
        "sample_index": sample,
        "prompt_id": group.row["prompt_id"],
        "prompt_token_ids": group.prompt_token_ids,
        "completion_token_ids": reply.token_ids,
        "behavior_logprobs": logprobs,
        "action_mask": None,
        "prompt_text": group.row["prompt_text"],
        "completion_text": text_of(reply, tokenizer),
        "answer": group.row["answer"],
        "finish_reason": reply.finish_reason,
        "reward": None if status == "engine_error" else grade.reward,
        "policy_id": job.policy_id,
        "policy_version": job.policy_version,
        "source": "self",
        "seed": job.seed(group, sample) if job.sampling.temperature > 0 else None,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "top_k": job.sampling.top_k,
        "min_p": job.sampling.min_p,
        "logprobs_mode": "processed_logprobs",
        "engine": job.engine,
        "status": status,
        "error": error,
        **grade.components,
    }
