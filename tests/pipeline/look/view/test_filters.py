"""What can be typed into the filter, and what it finds."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.look.view.columns import columns_of
from pipeline.look.view.filters import parse_filter
from pipeline.look.view.screens import quoted

COLUMNS = columns_of(["reward_format"])
ROWS: list[dict[str, Any]] = [
    {"prompt_text": "Q one", "completion_text": "Carrots (two)", "reward": 0.0, "status": "ok", "keep": True, "error": None},
    {
        "prompt_text": "Q two",
        "completion_text": 'say "so"',
        "reward": 0.5,
        "status": "truncated",
        "keep": False,
        "error": "slow\tx",
    },
    {"prompt_text": "Q new", "completion_text": "reward>0.5", "reward": 1.0, "status": "ok", "keep": None, "error": "x"},
    {"prompt_text": "carrots", "completion_text": "", "reward": None, "status": "ok", "keep": True, "error": None},
]


def found(text: str) -> list[int]:
    """Numbers of the rows that a filter finds."""
    rows = pl.DataFrame(ROWS).with_row_index().lazy()
    for expression in parse_filter(text, COLUMNS).expressions:
        rows = rows.filter(expression)
    return rows.collect()["index"].to_list()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [0, 1, 2, 3]),
        ("carrots", [0, 3]),
        ("(two)", [0]),
        ('"q two"', [1]),
        ("reward>0", [1, 2]),
        ("reward>=0.5 status=ok", [2]),
        ("reward!=0", [1, 2]),
        ("reward=null", [3]),
        ("error!=null", [1, 2]),
        ("reward<1e0 carrots", [0]),
        ("keep=true", [0, 3]),
        ("keep!=true", [1]),
        ("status!=ok", [1]),
        ("completion_text~two", [0]),
        ("error!~slow", [2]),
        (r'completion_text="say \"so\""', [1]),
        ('error="slow\tx"', [1]),
        ('"reward>0.5"', [2]),
        ('status="null"', []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_words_and_conditions_must_all_hold(text: str, rows: list[int]) -> None:
    assert found(text) == rows


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rewards>0", r"there is no such column; did you mean reward\?"),
        ("zzzz=1", "the columns are listed under the filter"),
        ("reward>much", "reward: 'much' is no number"),
        ("reward>nan", "'nan' is no number"),
        ("reward~5", "reward is no text"),
        ("keep>true", "expected keep=true or keep=false"),
        ("reward>null", "null is compared by = and != alone"),
        ('completion_text~"so', "begins with a quote ends with one"),
        ("x" * 3000, "longer than 2,000 characters"),
        ("completion_token_ids=1", "there is no such column"),
    ],
)
def test_a_filter_that_cannot_be_understood_says_what_would_be(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_filter(text, COLUMNS)


def test_a_filter_is_no_code() -> None:
    for text in ("__import__('os')", "read_parquet('/etc/passwd')", "1;DROP", "(?i).*", "{7*7}", "*", "a|b"):
        assert found(text) == []


@pytest.mark.parametrize("value", ['say "so"', "slow\tx", "null", "back\\slash", "", "ok", "\u202e"])
def test_a_value_that_a_link_names_is_read_back_as_it_is(value: str) -> None:
    rows = pl.DataFrame({"error": [value, "another"]})
    (expression,) = parse_filter(f"error={quoted(value)}", COLUMNS).expressions
    assert rows.filter(expression)["error"].to_list() == [value]
