"""Totals of more tokens than 32 bits can count, without the tokens: lists of nulls in one buffer, seen many times."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.common.lengths import length
from pipeline.generate.summary import summarize

ROOT = Path(__file__).parents[3]
MANY = 5_000_000


def test_lengths_add_up_beyond_32_bits() -> None:
    long = pl.DataFrame({"ids": [list(range(1000))]}).with_columns(tokens=length("ids"))
    assert long.schema["tokens"] == pl.Int64
    totals = long.select(pl.col("tokens").repeat_by(MANY).explode()).sum().item()
    assert totals == 5_000_000_000  # 705,032,704 in 32 bits


def test_the_figures_of_a_rollouts_artifact_are_of_all_its_tokens() -> None:
    """5,000,000 completions of 1,000 tokens, as `read_scalars` has them."""
    lists = pl.DataFrame({"completion_token_ids": [[7] * 1000], "prompt_token_ids": [[7] * 900]})
    row = lists.select(tokens=length("completion_token_ids"), prompt_tokens=length("prompt_token_ids"))
    other = {"group_id": "a", "status": "ok", "reward": 1.0, "policy_version": 0, "error": None, "finish_reason": "stop"}
    rows = row.with_columns(**{name: pl.lit(value) for name, value in other.items()}).select(pl.all().repeat_by(MANY).explode())
    figures = summarize(rows)
    assert (figures["tokens"], figures["prompt_tokens"]) == (5_000_000_000, 4_500_000_000)


def test_lengths_are_counted_in_64_bits_everywhere() -> None:
    """Elsewhere a list's length is only compared, or written as it is."""
    found = []
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            kept = " == " in line or " > " in line or "cast(pl.Int32)" in line
            if ".list.len()" in line and (".sum()" in line or not kept) and file.name != "lengths.py":
                found.append(f"{file}, line {number}: {line.strip()}")
    assert found == [], "use pipeline.common.lengths.length"
