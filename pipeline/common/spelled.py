"""Numbers as text."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

LONGEST = 40
"""Characters beyond which an exponent stays."""


def spelled(value: Any) -> str:
    """A number as people write it, without the .0 and the exponent that floats bring; anything else as Python writes it.

    pandas makes floats of a column's whole numbers when one is missing, and JSON has one kind of number: 75.0 in a file is 75
    to whoever answers.

    >>> [spelled(value) for value in (75.0, 1e-05, 1e16, -2.50, 0.1, True, "1e5")]
    ['75', '0.00001', '10000000000000000', '-2.5', '0.1', 'True', '1e5']
    """
    if isinstance(value, float) and math.isfinite(value):
        text = format(Decimal(repr(value)), "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if value == 0 else text if len(text) <= LONGEST else str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    return str(value)
