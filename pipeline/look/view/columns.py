"""Columns that completions can be filtered and sorted by: those of their tables, and figures made from these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from pipeline.algorithms.cells.density import mean_logprob
from pipeline.common.lengths import length
from schemas import Rollouts, Shaped

KEY = ["group_id", "sample_index"]
Sort = Literal["number", "text", "truth"]


@dataclass(frozen=True)
class ViewColumn:
    """One column."""

    name: str
    sort: Sort
    expression: pl.Expr
    """Over a row of the rollouts, joined with its shaped row where `shaped`; `set` and `place` are there as columns."""
    about: str
    shaped: bool = False


_MADE = (
    ViewColumn("iteration", "number", pl.col("policy_version"), "Of the checkpoint that answered; 0 is the base model."),
    ViewColumn(
        "set",
        "text",
        pl.col("set"),
        "rollouts (trained on), revised (trained on in their place), sampled or greedy (held-out answers).",
    ),
    ViewColumn("place", "text", pl.col("place"), "Name of the run or the store."),
    ViewColumn("tokens", "number", length("completion_token_ids"), "Tokens of the completion."),
    ViewColumn("prompt_tokens", "number", length("prompt_token_ids"), "Tokens of the prompt."),
    ViewColumn("logprob", "number", mean_logprob(), "Mean logprob of the tokens that the policy drew, nats."),
)


def columns_of(extra: Iterable[str]) -> Mapping[str, ViewColumn]:
    """All columns by name.

    Args:
        extra: columns of the rollouts beyond the declared ones, such as reward_exact_match: numbers.
    """
    found = [*_MADE, *_declared(Rollouts), *_declared(Shaped)]
    found += [ViewColumn(name, "number", pl.col(name), "A component of the reward.") for name in extra]
    return {column.name: column for column in found}


def _declared(table: type[Rollouts] | type[Shaped]) -> Iterable[ViewColumn]:
    shaped = table is Shaped
    for field in table.arrow_schema():
        dtype = table.columns()[field.name].dtype
        if isinstance(dtype, pl.List) or (shaped and field.name in KEY):
            continue
        sort: Sort = "truth" if dtype == pl.Boolean else "text" if dtype == pl.String else "number"
        about = (field.metadata or {}).get(b"description", b"").decode()
        yield ViewColumn(field.name, sort, pl.col(field.name), about, shaped)
