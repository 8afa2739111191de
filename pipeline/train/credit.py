"""Advantages of turns, spread over their tokens."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.common.errors import DataError
from pipeline.train.rows import KEY


def with_credit(rows: pl.DataFrame, credits: pl.DataFrame) -> pl.DataFrame:
    """The rows with `credit`, the advantage of each token's turn, and a mask that is false in turns without a loss.

    Args:
        rows: group_id, sample_index, tokens and mask.
        credits: rows of `Credits`, of all of them.

    Raises:
        DataError: a row has no turns.
    """
    turns = credits.group_by(KEY).agg("start", "length", "advantage", "keep")
    joined = rows.select(*KEY, "mask").join(turns, on=KEY, how="left", maintain_order="left")
    if lost := joined["start"].null_count():
        raise DataError(f"{lost} completions have no credits of turns; they were not shaped together")
    spread, masks = [], []
    for mask, *parts in joined.select("mask", "start", "length", "advantage", "keep").iter_rows():
        credit, kept = np.zeros(len(mask), np.float32), np.zeros(len(mask), np.bool_)
        for start, length, advantage, keep in zip(*parts, strict=True):
            credit[start : start + length], kept[start : start + length] = advantage, keep
        spread.append(credit)
        masks.append(kept & np.asarray(mask, np.bool_))
    return rows.with_columns(
        pl.Series("credit", [one.tolist() for one in spread], pl.List(pl.Float32)),
        pl.Series("mask", [one.tolist() for one in masks], pl.List(pl.Boolean)),
    )
