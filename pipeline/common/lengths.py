"""How long lists are, in numbers that can be added up: Polars counts in 32 bits, and its sums of such numbers wrap around."""

from __future__ import annotations

import polars as pl


def length(column: str | pl.Expr) -> pl.Expr:
    """Elements of each list, in 64 bits, so that billions of tokens add up.

    >>> pl.DataFrame({"ids": [[1, 2], []]}).select(length("ids").sum()).item()
    2
    """
    return (pl.col(column) if isinstance(column, str) else column).list.len().cast(pl.Int64)
