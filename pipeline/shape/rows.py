"""Completions of several rows, where each turn of an episode is one: shaped by the last, whose fate and numbers all have."""

from __future__ import annotations

import polars as pl

from schemas.rollouts import CONTINUED, ends_episode

SUMMED = ("drawn", "calls", "voids", "sound")
"""What is counted over all rows of a completion."""
_EPISODE = "episode"


def ends(rows: pl.DataFrame) -> pl.DataFrame:
    """The last row of each completion, with the sums over its rows.

    Args:
        rows: of whole groups, in their order, with finish_reason.
    """
    if CONTINUED not in rows["finish_reason"]:
        return rows
    sums = [pl.col(name).sum().over(_EPISODE) for name in SUMMED if name in rows.columns]
    return _numbered(rows).with_columns(sums).filter(ends_episode()).drop(_EPISODE)


def spread(shaped: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of a `Shaped` table for all rows of each completion.

    Args:
        shaped: of the last rows.
        rows: group_id, sample_index and finish_reason of all, in their order.
    """
    if CONTINUED not in rows["finish_reason"]:
        return shaped
    numbered = _numbered(rows.select("group_id", "sample_index", "finish_reason"))
    last = numbered.filter(ends_episode()).join(shaped, on=["group_id", "sample_index"], how="inner", maintain_order="left")
    fates = last.drop("group_id", "sample_index", "finish_reason")
    return numbered.join(fates, on=_EPISODE, how="inner", maintain_order="left").select(shaped.columns)


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(ends_episode().cum_sum(reverse=True).alias(_EPISODE))
