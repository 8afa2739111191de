"""Nash-MD by hand: win rates of a group, and the weight of a completion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.advantages import WinRate
from pipeline.algorithms.tokens import Tokens


def rates(rewards: dict[str, list[float]], soft: float) -> list[float]:
    rows = [(group, reward) for group, values in rewards.items() for reward in values]
    frame = pl.DataFrame(rows, schema=["group_id", "reward"], orient="row")
    return frame.select(A=WinRate(soft=soft).expression(pl.col("reward")))["A"].to_list()


def test_a_win_rate_is_against_the_others_of_the_group() -> None:
    assert rates({"a": [1.0, 0.0, 0.0], "b": [3.0]}, soft=0) == [0.5, -0.25, -0.25, 0.0]
    won = 1 / (1 + math.exp(-2.0))  # sigmoid((1 - 0) / .5)
    assert rates({"a": [1.0, 0.0, 0.0]}, soft=0.5) == pytest.approx(
        [won - 0.5, (0.5 + 1 - won) / 2 - 0.5, (0.5 + 1 - won) / 2 - 0.5]
    )
    assert rates({"a": [0.1 + 0.2, 0.3, 0.3]}, soft=0) == [0.0, 0.0, 0.0]  # floating-point noise wins nothing


def test_win_rates_do_not_depend_on_the_order_of_rows_and_do_not_overflow() -> None:
    values = [0.1, 0.7, 0.2, 0.35, 0.9]
    ordered = dict(zip(sorted(values), rates({"a": sorted(values)}, soft=0.3), strict=True))
    assert rates({"a": values}, soft=0.3) == [ordered[value] for value in values]
    assert rates({"a": [1e6, -1e6]}, soft=1e-3) == [0.5, -0.5]


def test_nash_md_by_hand(make_tokens: Callable[..., Tokens], pull: Callable[[Algorithm, Tokens], tuple[float, Any]]) -> None:
    """w = e^.5 of the first, whose Delta is .3, and e^-.2 of the second, whose Delta is -.1. The last token is masked out."""
    tokens = make_tokens(
        [[-1.0, -0.5], [-2.0, -9.0]],
        [0.4, -0.4],
        behavior=[[-1.2, -0.8], [-1.8, -math.inf]],
        reference=[[-1.1, -0.7], [-1.9, -math.inf]],
        mask=[[True, True], [True, False]],
    )
    scores = math.exp(0.5) * (0.4 - 0.1 * 0.3), math.exp(-0.2) * (-0.4 + 0.1 * 0.1)
    loss, gradient = pull(resolve("nash-md", {"tau": 0.1}), tokens)
    assert loss == pytest.approx((scores[0] * 1.5 + scores[1] * 2.0) / 2)
    assert gradient.tolist() == pytest.approx([-scores[0] / 2, -scores[0] / 2, -scores[1] / 2, 0.0])
    capped = pull(resolve("nash-md", {"tau": 0.1, "cap": 1.0}), tokens)[1]
    assert capped[0].item() == pytest.approx(-(0.4 - 0.03) / 2)


def test_nash_md_reads_what_drew_the_completions_and_the_reference() -> None:
    assert set(resolve("nash-md").needs) == {"behavior_logprobs", "reference_logprobs"}
    assert resolve("nash-md", {"soft": 0.5, "tau": 0.01}).advantage == WinRate(soft=0.5)
