"""Stored completions as graders are given them, and their rows with other rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.config.reward import RewardConfig
from pipeline.generate.shards import group_id
from pipeline.rewards.items import RewardItem, RewardResult
from schemas import Rollouts
from schemas.rollouts import CUT, ENVIRONMENT_ERROR, ends_episode

GIVEN = ("group_id", "sample_index", "prompt_id", "prompt_text", "completion_text", "answer", "finish_reason")


def items_of(
    frame: pl.DataFrame,
    prompts: Mapping[str, Mapping[str, Any]],
    episode_rewards: Mapping[tuple[str, int], float | None] | None = None,
) -> Iterator[RewardItem]:
    """Rows of `Rollouts` as graders are given them.

    Args:
        prompts: rows of the prompts by their id. Of a prompt that is not among them, graders are given what the row has.
        episode_rewards: what an environment gave, by the rows' keys.
    """
    given = episode_rewards or {}
    for row in frame.select(GIVEN).iter_rows(named=True):
        prompt = prompts.get(row["prompt_id"]) or _own_prompt(row)
        place = (row["group_id"], row["sample_index"])
        yield RewardItem(row["completion_text"], row["answer"], prompt, *place, row["finish_reason"], given.get(place))


def _own_prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: row[name] for name in ("prompt_id", "prompt_text", "answer")}
    return {**known, "question": row["prompt_text"], "metadata": {}}


def regraded(
    frame: pl.DataFrame, results: Sequence[RewardResult], old_key: str, new_key: str, reward: RewardConfig
) -> pl.DataFrame:
    """Rows of `Rollouts` with other rewards, as generation with these graders writes them.

    A completion that the engine or the environment failed on stays one. The names of groups end with the artifact that they are
    in.
    """
    stored = frame["status"]
    failed = pl.Series([result.error for result in results], dtype=pl.String)
    broken = stored.is_in(["engine_error", ENVIRONMENT_ERROR])
    ended = frame.select(pl.when(ends_episode()).then(pl.col("finish_reason").fill_null("")).backward_fill())["finish_reason"]
    cut = ended.is_in(CUT).fill_null(False)
    answered = pl.select(
        pl.when(stored != "reward_error").then(stored).when(cut).then(pl.lit("truncated")).otherwise(pl.lit("ok"))
    ).to_series()
    status = pl.when(broken).then(stored).when(failed.is_not_null()).then(pl.lit("reward_error")).otherwise(answered)
    rewards = pl.Series([result.reward for result in results], dtype=pl.Float64)
    old, new = group_id("", old_key), group_id("", new_key)
    columns = {
        component.column: pl.Series([result.components[component.column] for result in results], dtype=pl.Float64)
        for component in reward.components
    }
    return frame.select(*Rollouts.columns()).with_columns(
        group_id=pl.col("group_id").str.strip_suffix(old) + new,
        reward=pl.when(broken).then(None).otherwise(rewards),
        status=status,
        error=pl.when(broken).then(pl.col("error")).otherwise(failed),
        **columns,
    )


def each_row(results: Sequence[RewardResult], frame: pl.DataFrame) -> list[RewardResult]:
    """Results of completions for each of their rows: several where each turn of an episode is a row.

    Args:
        results: of the last row of each, in their order.
        frame: all rows.
    """
    ends = frame.select(end=ends_episode())["end"]
    places = ends.shift(1, fill_value=False).cum_sum()
    return [results[place] for place in places]


def of_last_rows(turns: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Turns with the number of their episode's last row in place of their row's own.

    Args:
        turns: of the rows.
        frame: all rows, in their order.
    """
    key = ["group_id", "sample_index"]
    rows = frame.select(*key, end=pl.when(ends_episode()).then("sample_index").backward_fill())
    last = turns.sort(*key, "turn").join(rows, on=key, how="inner", maintain_order="left")
    numbered = last.with_columns(sample_index="end", turn=pl.int_range(pl.len(), dtype=pl.Int32).over("group_id", "end"))
    return numbered.drop("end")
