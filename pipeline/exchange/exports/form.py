"""What a form of another tool is. One file in `forms` holds one, and `foreign` writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

Row = dict[str, Any]
UNKNOWN = "unknown"
SAMPLING = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True, kw_only=True)
class ForeignForm:
    """How a tool writes completions down."""

    name: str
    """What --to calls it, and rollbook import's --format."""
    title: str
    file: str
    """Name of the file."""
    holds: frozenset[str]
    """Columns of the rollouts that come back; prompt and completion always do, as texts or as tokens."""
    tokens: bool
    """Whether those are tokens. Texts are tokenized again."""
    groups: str
    """What becomes of groups."""
    refuses: pl.Expr
    """Why a row cannot be held; null of one that can."""
    lines: Callable[[list[Row]], Iterator[Row]]
    """Of a group's rows."""


def drawn(row: Row) -> list[bool]:
    """Which completion tokens the policy drew."""
    return row["action_mask"] if row["action_mask"] is not None else [True] * len(row["completion_token_ids"])


NOTHING_DRAWN = pl.col("completion_token_ids").list.len() == 0
FAILED = pl.col("status").is_in(["engine_error", "environment_error"])
STARTS_ELSEWHERE = pl.col("action_mask").list.first().fill_null(True).not_()


def why(condition: pl.Expr, reason: str) -> pl.Expr:
    """A reason where a condition is true, else null."""
    return pl.when(condition).then(pl.lit(reason))
