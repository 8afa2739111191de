"""Shards: whole groups of one job, filled as completions finish, written once all are graded."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from pipeline.common.errors import DataError
from pipeline.config.engine import SamplingConfig
from pipeline.config.reward import RewardConfig
from pipeline.generate.engine import CompletionRequest, Episode, Reply
from pipeline.generate.seeds import completion_seed, row_seed
from pipeline.generate.turns import episode_of, episodes_of, turn_rows
from pipeline.rewards.items import RewardItem, RewardResult, prompt_for_grader
from pipeline.rewards.pool import RewardPool
from pipeline.store.tables import check_columns
from schemas import Remarks, Rollouts
from schemas.rollouts import CONTINUED, CUT, ENVIRONMENT_ERROR

TEXT = "completion_text"
"""The column that a remark on lost tokens is about, where those of graders name their score's."""
MOST_LOST = 5
"""Lost tokens that a remark names."""


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    all_special_ids: list[int]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class Group:
    """One prompt to answer."""

    row: dict[str, Any]
    """The prompt's row in the prompts table."""
    prompt_token_ids: list[int]
    name: str
    """Of `GroupNames`: an iteration may want more groups than there are prompts."""


@dataclass(frozen=True, kw_only=True)
class RolloutsJob:
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
    rows: int = 1
    """That a completion may have, one for each turn."""

    def seed(self, group: Group, sample: int) -> int:
        return completion_seed(self.run_seed, self.purpose, self.iteration, group.name, sample)

    def row_seed(self, group: Group, sample_index: int) -> int:
        return row_seed(self.run_seed, self.purpose, self.iteration, group.name, sample_index, self.rows)

    def group_id(self, group: Group) -> str:
        return group_id(group.name, self.key)

    def asks(self, shard: Shard) -> Iterator[CompletionRequest]:
        for number in range(shard.start, shard.stop):
            group = self.groups[number]
            for sample in range(self.samples):
                yield CompletionRequest(
                    (self.number, number, sample), group.prompt_token_ids, self.sampling, self.seed(group, sample)
                )


@dataclass
class Shard:
    """A run of groups that go into one file."""

    job: RolloutsJob
    name: str
    start: int
    stop: int
    engine: str = ""
    """What answers, as the rows say it."""
    replies: dict[int, list[Reply]] = field(default_factory=dict)
    texts: dict[int, list[list[str]]] = field(default_factory=dict)
    """Of each completion of a whole group its rows' texts; graders see the last."""
    grades: dict[int, Future[list[RewardResult]]] = field(default_factory=dict)

    def add(self, reply: Reply, tokenizer: Decoder, pool: RewardPool) -> None:
        """Take a finished completion; once its group is whole, hand the group to the graders."""
        number = reply.key[1]
        group = self.replies.setdefault(number, [])
        group.append(reply)
        if len(group) == self.job.samples:
            group.sort(key=lambda reply: reply.key[2])
            prompt, name = self.job.groups[number].row, self.job.group_id(self.job.groups[number])
            given = prompt_for_grader(prompt)
            texts = self.texts[number] = [[self._text_of(row, tokenizer) for row in one.rows] for one in group]
            items = [
                RewardItem(text, prompt["answer"], given, name, self._last(one), one.finish_reason, reward_of(one))
                for one, (*_, text) in zip(group, texts, strict=True)
            ]
            self.grades[number] = pool.submit(items)

    def is_in(self, path: Path) -> bool:
        """Whether a file holds this shard's completions, however they are graded: its prompts, samples and seeds."""
        if not path.is_file():
            return False
        try:
            check_columns(path, Rollouts)
            stored = pl.read_parquet(path, columns=["prompt_id", "sample_index", "seed"], glob=False).rows()
        except (DataError, OSError, pl.exceptions.PolarsError):
            return False
        groups = [self.job.groups[number] for number in range(self.start, self.stop)]
        drawn, rows = self.job.sampling.temperature > 0, self.job.rows
        wanted = [(group, sample) for group in groups for sample in range(self.job.samples)]
        there = itertools.groupby(stored, key=lambda row: (row[0], row[1] // rows))
        return [key for key, _ in there] == [(group.row["prompt_id"], sample) for group, sample in wanted] and all(
            [(index, seed) for _, index, seed in several]
            == [
                (index, self.job.row_seed(group, index) if drawn else None)
                for index in range(sample * rows, sample * rows + len(several))
            ]
            for (group, sample), several in zip(
                wanted,
                (list(found) for _, found in itertools.groupby(stored, key=lambda row: (row[0], row[1] // rows))),
                strict=True,
            )
        )

    def restore(self, frame: pl.DataFrame, turns: pl.DataFrame | None, tokenizer: Decoder, pool: RewardPool) -> None:
        """Take the completions that an earlier attempt wrote (`frame`'s rows), to grade them again.

        Args:
            turns: of them, if they are episodes.
        """
        self.engine = frame["engine"][0]
        episodes = {} if turns is None else episodes_of(turns)
        number, earlier = 0, list[Reply]()
        for row in frame.iter_rows(named=True):
            key = (self.job.number, self.start + number // self.job.samples, row["sample_index"] // self.job.rows)
            error = row["error"] if row["status"] == "engine_error" else None
            logprobs = row["behavior_logprobs"] or []
            spoken = episodes.get((row["group_id"], row["sample_index"]), [])
            episode = None if turns is None else episode_of(row, spoken)
            ids, ended, text = row["completion_token_ids"], row["finish_reason"], row["completion_text"]
            reply = Reply(key, ids, logprobs, ended, text, error, episode=episode)
            if ended == CONTINUED:
                earlier.append(reply)
                continue
            self.add(replace(reply, earlier=tuple(earlier)), tokenizer, pool)
            number, earlier = number + 1, []

    @property
    def is_answered(self) -> bool:
        """Whether every completion is there, and with the graders."""
        return len(self.grades) == self.stop - self.start

    def when_graded(self, then: Callable[[], None]) -> None:
        """Have something done as soon as every grade is there. Once it is answered; by whichever thread brings the last grade."""
        left, lock = len(self.grades), threading.Lock()

        def count(_: Future[list[RewardResult]]) -> None:
            nonlocal left
            with lock:
                left -= 1
                is_last = left == 0
            if is_last:
                then()

        for grade in self.grades.values():
            grade.add_done_callback(count)

    def forget(self) -> None:
        """It is written: let go of what it holds."""
        for held in (self.replies, self.texts, self.grades):
            held.clear()

    def frame(self, reward: RewardConfig) -> pl.DataFrame:
        """The shard's rows, in the order of the prompts."""
        rows = []
        for number in range(self.start, self.stop):
            group, grades = self.job.groups[number], self.grades[number].result()
            for reply, texts, grade in zip(self.replies[number], self.texts[number], grades, strict=True):
                rows += _rows(self.job, group, reply, grade, texts, self.engine)
        columns = [component.column for component in reward.components]
        types = {name: column.dtype for name, column in Rollouts.columns().items()} | dict.fromkeys(columns, pl.Float64)
        return pl.DataFrame(rows, schema=types)

    def remarks(self, known: Collection[int] | None = None) -> pl.DataFrame:
        """What graders said beside their scores, and which tokens no grader saw, as rows of `Remarks`.

        Args:
            known: the ids that the tokenizer spells; None if all that the model draws.
        """
        rows = []
        for number in range(self.start, self.stop):
            name = self.job.group_id(self.job.groups[number])
            for i, (reply, grade) in enumerate(zip(self.replies[number], self.grades[number].result(), strict=True)):
                for place, row in enumerate(reply.rows):
                    lost = None if known is None else unspelled(row.token_ids, known)
                    said = grade.remarks if row is reply else {}
                    rows.append((name, i * self.job.rows + place, {**said, **({TEXT: lost} if lost else {})}))
        return remarks_of(rows)

    def turns(self) -> pl.DataFrame:
        """Rows of `Turns`; none if no environment took part."""
        named = [(self.job.group_id(self.job.groups[number]), self.replies[number]) for number in range(self.start, self.stop)]
        return turn_rows(
            (name, reply.key[2] * self.job.rows + place, row.episode)
            for name, replies in named
            for reply in replies
            for place, row in enumerate(reply.rows)
        )

    def _last(self, reply: Reply) -> int:
        """Number of a completion's last row in its group."""
        return reply.key[2] * self.job.rows + len(reply.earlier)

    def _text_of(self, reply: Reply, tokenizer: Decoder) -> str:
        return text_of(reply, tokenizer, keep_stop=self.job.sampling.keep_stop_text)


def group_id(name: str, key: str) -> str:
    """A group's id: its prompt's name, and the artifact that it is in."""
    return f"{name}@{key[:8]}"


def remarks_of(said: Iterable[tuple[str, int, Mapping[str, str]]]) -> pl.DataFrame:
    """Rows of `Remarks`: of each completion its group, its number, and what was said by the component's column."""
    rows = [(group, sample, column, text) for group, sample, remarks in said for column, text in remarks.items()]
    types = {name: column.dtype for name, column in Remarks.columns().items()}
    return pl.DataFrame(rows, schema=types, orient="row")


def remarks_name(shard: str) -> str:
    """The file of a shard's remarks: remarks-00000.parquet beside part-00000.parquet."""
    return f"remarks-{shard.removeprefix('part-')}"


def shards_of(job: RolloutsJob, size: int) -> list[Shard]:
    """Cut a job into files of `size` groups."""
    starts = range(0, len(job.groups), size)
    return [Shard(job, f"part-{i:05d}.parquet", s, min(s + size, len(job.groups))) for i, s in enumerate(starts)]


def unspelled(token_ids: Sequence[int], known: Collection[int]) -> str | None:
    """A remark on tokens that the tokenizer has no text for: a model's vocabulary is often padded beyond its tokenizer's.

    >>> unspelled([5, 900, 7, 901], range(800))
    '2 of 4 tokens are not in the tokenizer and left no text: 900, 901'
    """
    lost = [token for token in token_ids if token not in known]
    if not lost:
        return None
    ids = ", ".join(map(str, dict.fromkeys(lost[:MOST_LOST])))
    return f"{len(lost)} of {len(token_ids)} tokens are not in the tokenizer and left no text: {ids}"


def text_of(reply: Reply, tokenizer: Decoder, *, keep_stop: bool = False) -> str:
    """What graders see: what the tokens spell, up to the stop text that ended them, and the same whatever `stop` is.

    The engine's own text may begin with a space that no tokenizer gives of the completion alone. It is taken where it alone
    holds the stop text.

    Args:
        keep_stop: up to the stop text's end, not its beginning.
    """
    if reply.text is not None and reply.stopped_by is None:
        return reply.text
    whole = tokenizer.decode(reply.token_ids, skip_special_tokens=True)
    if reply.text is None or reply.stopped_by is None:
        return whole
    head, found, _ = whole.partition(reply.stopped_by)
    return (head if found else reply.text) + (reply.stopped_by if keep_stop else "")


def reward_of(reply: Reply) -> float | None:
    """What an environment gave for a completion; None if it gave nothing, or there is none."""
    return Episode((), tuple(turn for row in reply.rows if row.episode for turn in row.episode.turns)).reward


def _rows(
    job: RolloutsJob, group: Group, reply: Reply, grade: RewardResult, texts: Sequence[str], engine: str
) -> list[dict[str, Any]]:
    """The rows of a completion: one, or one for each turn, which share its fate and its reward."""
    pairs = zip(reply.rows, texts, strict=True)
    rows = [_row(job, group, row, grade, text, engine, place) for place, (row, text) in enumerate(pairs)]
    fate = next((row for row in rows if row["status"] == "engine_error"), rows[-1])
    shared = {name: fate[name] for name in ("status", "error", "reward")}
    return [row | shared for row in rows]


def _row(
    job: RolloutsJob, group: Group, reply: Reply, grade: RewardResult, text: str, engine: str, place: int = 0
) -> dict[str, Any]:
    sample = reply.key[2] * job.rows + place
    logprobs: list[float] | None = reply.logprobs
    error = reply.error
    if len(reply.logprobs) != len(reply.token_ids) or not all(map(math.isfinite, reply.logprobs)):
        logprobs = None
        error = error or "the engine gave no finite logprob for every token"
    episode, status = reply.episode, "ok"
    if error is not None:
        status = "engine_error"
    elif episode is not None and episode.error is not None:
        status, error = ENVIRONMENT_ERROR, episode.error
    elif grade.error is not None:
        status, error = "reward_error", grade.error
    elif reply.finish_reason in CUT:
        status = "truncated"
    return {
        "group_id": job.group_id(group),
        "sample_index": sample,
        "prompt_id": group.row["prompt_id"],
        "prompt_token_ids": group.prompt_token_ids,
        "completion_token_ids": reply.token_ids,
        "behavior_logprobs": logprobs,
        "action_mask": None if episode is None or all(episode.mask) else list(episode.mask),
        "prompt_text": group.row["prompt_text"],
        "completion_text": text,
        "answer": group.row["answer"],
        "finish_reason": reply.finish_reason,
        "reward": None if status in ("engine_error", ENVIRONMENT_ERROR) else grade.reward,
        "policy_id": job.policy_id,
        "policy_version": job.policy_version,
        "source": "self",
        "seed": job.row_seed(group, sample) if job.sampling.temperature > 0 else None,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "top_k": job.sampling.top_k,
        "min_p": job.sampling.min_p,
        "logprobs_mode": "processed_logprobs",
        "engine": engine,
        "status": status,
        "error": error,
        **grade.components,
    }
