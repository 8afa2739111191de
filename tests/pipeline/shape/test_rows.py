"""Completions of several rows count once, and all their rows have one fate."""

from __future__ import annotations

import polars as pl

from pipeline.shape.rows import ends, spread

ROWS = pl.DataFrame(
    {
        "group_id": ["a"] * 4 + ["b"],
        "sample_index": [0, 1, 4, 8, 0],
        "finish_reason": ["continued", "stop", None, "stop", "length"],
        "reward": [1.0, 1.0, 0.0, 0.0, 1.0],
        "drawn": [3, 4, 5, 6, 7],
        "tokens": [3, 9, 5, 6, 7],
    }
)


def test_a_completion_is_its_last_row_with_what_was_drawn_in_all() -> None:
    last = ends(ROWS)
    assert last.select("group_id", "sample_index", "drawn", "tokens").rows() == [
        ("a", 1, 7, 9), ("a", 4, 5, 5), ("a", 8, 6, 6), ("b", 0, 7, 7),
    ]  # fmt: skip
    assert ends(ROWS.tail(2)).equals(ROWS.tail(2))


def test_every_row_of_a_completion_has_its_fate() -> None:
    shaped = ends(ROWS).select("group_id", "sample_index", advantage=pl.Series([0.5, -0.5, 0.0, 1.0]), keep=True)
    every = spread(shaped, ROWS)
    assert every.columns == shaped.columns
    assert every["advantage"].to_list() == [0.5, 0.5, -0.5, 0.0, 1.0] and every["keep"].all()
    assert every["sample_index"].to_list() == ROWS["sample_index"].to_list()
