"""Numbers as text."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.spelled import spelled


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (75.0, "75"),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (5e-324, "5e-324"),
        (float("inf"), "inf"),
        (10**50, str(10**50)),
        (Decimal("7.50"), "7.50"),
        (Decimal("1E+3"), "1000"),
        (True, "True"),
        ("75.0", "75.0"),
    ],
)
def test_spelled(value: Any, text: str) -> None:
    assert spelled(value) == text


@given(st.floats(allow_nan=False))
def test_a_spelled_float_is_the_same_number(value: float) -> None:
    assert float(spelled(value)) == value or (value == 0 and spelled(value) == "0")
    assert math.isinf(value) or not spelled(value).endswith(".0")
