"""Shards: completions come in any order and leave as whole, graded groups."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.engine import SamplingConfig
from pipeline.config.reward import RewardConfig
from pipeline.generate.engine import Reply
from pipeline.generate.seeds import completion_seed
from pipeline.generate.shards import Group, RolloutsJob, Shard, shards_of, text_of
from pipeline.rewards.items import prompt_for_grader
from pipeline.rewards.pool import RewardPool
from pipeline.store.work import write_table
from schemas import Rollouts

REWARD = RewardConfig.model_validate({"components": [{"grader": "exact_match", "weight": 2.0}]})


class Words:
    """A tokenizer whose token n is the n-th letter; token 0 is special."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join("_abcdefgh"[token] for token in token_ids if token or not skip_special_tokens)


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(REWARD) as pool:
        yield pool


def job_of(groups: int = 3, samples: int = 2, answer: str | None = "ab", **sampling: Any) -> RolloutsJob:
    rows = [
        {"prompt_id": f"p{n}", "question": f"q{n}", "answer": answer, "prompt_text": f"q{n}=", "metadata": None}
        for n in range(groups)
    ]
    return RolloutsJob(
        number=0,
        key="0123456789abcdef",
        groups=[Group(row, [5, n], row["prompt_id"]) for n, row in enumerate(rows)],
        samples=samples,
        sampling=SamplingConfig(**sampling),
        purpose="train",
        iteration=1,
        run_seed=7,
        policy_id="policy",
        policy_version=1,
    )


def reply(group: int, sample: int, tokens: list[int], **changes: Any) -> Reply:
    fields = {"logprobs": [-0.5] * len(tokens), "finish_reason": "stop", "text": None, "error": None, **changes}
    return Reply((0, group, sample), tokens, **fields)


def frame_of(pool: RewardPool, *replies: Reply, job: RolloutsJob | None = None) -> pl.DataFrame:
    job = job or job_of(groups=1, samples=len(replies))
    (shard,) = shards_of(job, 100)
    for one in replies:
        shard.add(one, Words(), pool)
    return shard.frame(REWARD)


def test_a_job_is_cut_into_files_of_whole_groups() -> None:
    shards = shards_of(job_of(groups=5), 2)
    assert [(shard.name, shard.start, shard.stop) for shard in shards] == [
        ("part-00000.parquet", 0, 2),
        ("part-00001.parquet", 2, 4),
        ("part-00002.parquet", 4, 5),
    ]


def test_every_completion_is_asked_for_once_with_its_own_seed() -> None:
    job = job_of(groups=5, samples=3)
    asks = [ask for shard in shards_of(job, 2) for ask in job.asks(shard)]
    assert [ask.key for ask in asks] == [(0, group, sample) for group in range(5) for sample in range(3)]
    assert [ask.prompt_token_ids for ask in asks[::3]] == [[5, n] for n in range(5)]
    assert len({ask.seed for ask in asks}) == 15
    assert asks[4].seed == completion_seed(7, "train", 1, "p1", 1)


def test_a_shard_is_graded_once_all_its_groups_are_whole(pool: RewardPool) -> None:
    (shard,) = shards_of(job_of(groups=2), 2)
    for group, sample in ((1, 1), (0, 0), (1, 0)):
        shard.add(reply(group, sample, [1, 2]), Words(), pool)
        assert not shard.is_answered
    shard.add(reply(0, 1, [1, 2]), Words(), pool)
    assert shard.is_answered
    graded = threading.Event()
    shard.when_graded(graded.set)
    assert graded.wait(timeout=30)
    assert all(grade.done() for grade in shard.grades.values())
    again = threading.Event()
    shard.when_graded(again.set)
    assert again.is_set()


class LikeLlama(Words):
    """Texts lose their first space, which is token 9."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join("_abcdefgh "[token] for token in token_ids).lstrip(" ")


def test_graders_see_the_same_text_with_and_without_a_stop_text() -> None:
    tokens = [9, 1, 2, 9, 3]
    assert text_of(reply(0, 0, tokens), LikeLlama()) == "ab c"
    assert text_of(reply(0, 0, tokens, text=" ab", stopped_by=" c"), LikeLlama()) == "ab"
    assert text_of(reply(0, 0, tokens, text="", stopped_by=" ab"), LikeLlama()) == ""  # the engine alone has that stop text
    assert text_of(reply(0, 0, tokens, text=" as it is stored"), LikeLlama()) == " as it is stored"


def test_a_stop_text_can_be_kept(pool: RewardPool) -> None:
    tokens = [1, 2, 3]
    assert text_of(reply(0, 0, tokens, text="a", stopped_by="b"), Words(), keep_stop=True) == "ab"
    assert text_of(reply(0, 0, tokens, text=" a", stopped_by=" b"), Words(), keep_stop=True) == " a b"  # the engine's text alone
    kept = job_of(groups=1, samples=1, stop=("b",), keep_stop_text=True)
    frame = frame_of(pool, reply(0, 0, tokens, text="a", stopped_by="b"), job=kept)
    assert frame.select("completion_text", "reward").row(0) == ("ab", 2.0)
    assert frame_of(pool, reply(0, 0, tokens, text="a", stopped_by="b"))["completion_text"].to_list() == ["a"]


def test_tokens_without_a_text_leave_a_remark(pool: RewardPool) -> None:
    (shard,) = shards_of(job_of(groups=1, samples=2), 100)
    shard.add(reply(0, 0, [1, 7, 2, 8, 7]), Words(), pool)
    shard.add(reply(0, 1, [1, 2]), Words(), pool)
    shard.frame(REWARD)
    remarks = shard.remarks(known=range(7))
    assert remarks.select("sample_index", "component", "text").rows() == [
        (0, "completion_text", "3 of 5 tokens are not in the tokenizer and left no text: 7, 8"),
    ]
    assert shard.remarks(known=range(9)).is_empty()


def test_rows_are_in_the_order_of_the_prompts_however_completions_finished(pool: RewardPool, tmp_path: Path) -> None:
    (shard,) = shards_of(job_of(groups=2), 2)
    answers = {(0, 0): [1, 2, 0], (0, 1): [1], (1, 0): [2], (1, 1): [1, 2]}
    for group, sample in ((1, 1), (0, 1), (1, 0), (0, 0)):
        shard.add(reply(group, sample, answers[group, sample]), Words(), pool)
    frame = shard.frame(REWARD)
    assert frame.select("prompt_id", "sample_index").rows() == [("p0", 0), ("p0", 1), ("p1", 0), ("p1", 1)]
    assert frame["completion_token_ids"].to_list() == list(answers.values())
    assert frame["completion_text"].to_list() == ["ab", "a", "b", "ab"]
    assert frame["reward"].to_list() == [2.0, 0.0, 0.0, 2.0]
    assert frame["reward_exact_match"].to_list() == [1.0, 0.0, 0.0, 1.0]
    assert frame["group_id"].unique(maintain_order=True).to_list() == ["p0@01234567", "p1@01234567"]
    assert frame["seed"].to_list() == [completion_seed(7, "train", 1, f"p{g}", s) for g in (0, 1) for s in (0, 1)]
    write_table(tmp_path / "part-00000.parquet", frame, Rollouts)


def test_how_a_completion_ended_is_its_status(pool: RewardPool, tmp_path: Path) -> None:
    frame = frame_of(
        pool,
        reply(0, 0, [1, 2]),
        reply(0, 1, [1, 2], finish_reason="length"),
        reply(0, 2, [1], logprobs=[], finish_reason="abort", error="the engine ended it with 'abort'"),
        reply(0, 3, [1, 2], logprobs=[-0.5]),
        reply(0, 4, [1, 2], logprobs=[-0.5, float("-inf")]),
    )
    assert frame["status"].to_list() == ["ok", "truncated", "engine_error", "engine_error", "engine_error"]
    assert frame["reward"].to_list() == [2.0, 2.0, None, None, None]
    assert frame["behavior_logprobs"].to_list() == [[-0.5, -0.5], [-0.5, -0.5], None, None, None]
    assert frame["error"].to_list()[:3] == [None, None, "the engine ended it with 'abort'"]
    assert frame["error"].to_list()[3:] == ["the engine gave no finite logprob for every token"] * 2
    write_table(tmp_path / "part-00000.parquet", frame, Rollouts)


def test_a_completion_without_a_grade_says_why(pool: RewardPool, tmp_path: Path) -> None:
    frame = frame_of(pool, reply(0, 0, [1]), job=job_of(groups=1, samples=1, answer=None))
    assert frame.select("status", "reward", "reward_exact_match").row(0) == ("reward_error", None, None)
    assert "no answer to compare with" in frame["error"][0]
    write_table(tmp_path / "part-00000.parquet", frame, Rollouts)


def test_greedy_completions_have_no_seed(pool: RewardPool) -> None:
    frame = frame_of(pool, reply(0, 0, [1]), job=job_of(groups=1, samples=1, temperature=0.0))
    assert frame.select("seed", "temperature").row(0) == (None, 0.0)


def test_the_sampling_settings_are_on_every_row(pool: RewardPool) -> None:
    settings = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
    frame = frame_of(pool, reply(0, 0, [1]), job=job_of(groups=1, samples=1, **settings))
    assert frame.select("temperature", "top_p", "top_k", "min_p").row(0) == (0.5, 0.9, 7, 0.1)
    assert frame["logprobs_mode"][0] == "processed_logprobs"


def test_the_text_is_the_engines_if_it_made_one() -> None:
    assert text_of(reply(0, 0, [1, 2, 0]), Words()) == "ab"
    assert text_of(reply(0, 0, [1, 2, 3], text="ab"), Words()) == "ab"


def test_graders_see_the_datasets_other_columns() -> None:
    assert prompt_for_grader({"prompt_id": "p", "metadata": '{"level": 3}'}) == {"prompt_id": "p", "metadata": {"level": 3}}
    assert prompt_for_grader({"prompt_id": "p", "metadata": None})["metadata"] == {}


def test_a_shard_lets_go_of_nothing_before_it_is_written(pool: RewardPool) -> None:
    shard = Shard(job_of(groups=1, samples=1), "part-00000.parquet", 0, 1)
    shard.add(reply(0, 0, [1]), Words(), pool)
    first, second = (shard.frame(REWARD) for _ in range(2))
    assert first.equals(second)
