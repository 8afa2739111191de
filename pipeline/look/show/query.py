"""Which completions are wanted: filters, order and how many."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from schemas.rollouts import STATUSES

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
SORTABLE = ("reward", "advantage", "tokens", "logprob")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Filters of completions. None: all."""

    prompt: str | None = None
    """A prompt's or a group's id, or a part of the prompt's text."""
    contains: str | None = None
    """A part of the completion's text."""
    reward: str | None = None
    """Such as '>0.5', '=1', 'null', or several with commas between them."""
    status: str | None = None
    iterations: tuple[int, ...] = ()
    sort: str | None = None
    """reward, advantage, tokens or logprob (its mean); with - in front, the largest first."""
    rows: int = 10
    one_each: bool = False
    """Of each group only the first in that order."""

    def filter(self) -> pl.Expr:
        """
        Raises:
            UserError: a filter that cannot be understood.
        """
        wanted = pl.lit(True)
        if self.prompt is not None:
            named = pl.any_horizontal(pl.col("prompt_id", "group_id") == self.prompt)
            wanted &= named | pl.col("prompt_text").str.contains(self.prompt, literal=True)
        if self.contains is not None:
            wanted &= pl.col("completion_text").str.contains(self.contains, literal=True)
        if self.reward is not None:
            wanted &= reward_filter(self.reward)
        if self.status is not None:
            if self.status not in STATUSES:
                raise UserError(f"--status {self.status}: expected one of {', '.join(STATUSES)}")
            wanted &= pl.col("status") == self.status
        if self.iterations:
            wanted &= pl.col("policy_version").is_in(list(self.iterations))
        return wanted

    def order(self) -> tuple[str, bool] | None:
        """Column and whether the largest comes first; None for the order in which they are stored.

        Raises:
            UserError: no such order.
        """
        if self.sort is None:
            return None
        name = self.sort.removeprefix("-")
        if name not in SORTABLE:
            raise UserError(f"--sort {self.sort}: expected one of {', '.join(SORTABLE)}, with - in front for the largest first")
        return name, self.sort.startswith("-")


def reward_filter(text: str) -> pl.Expr:
    """
    >>> frame = pl.DataFrame({"reward": [0.0, 0.5, 1.0, None]})
    >>> [frame.filter(reward_filter(text))["reward"].to_list() for text in (">0", ">=0.5,<1", "1", "null")]
    [[0.5, 1.0], [0.5], [1.0], [None]]

    Raises:
        UserError: not a comparison with a number.
    """
    wanted = pl.lit(True)
    for part in text.split(","):
        if part.strip() == "null":
            wanted &= pl.col("reward").is_null()
            continue
        found = re.fullmatch(r"\s*(>=|<=|!=|=|>|<)?\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", part)
        if not found:
            raise UserError(f"--reward {text}: expected a comparison such as '>0.5', '=1' or '>=0,<1', or null")
        wanted &= COMPARISONS[found[1] or "="](pl.col("reward"), float(found[2]))
    return wanted
