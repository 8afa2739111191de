"""BAPO's adaptive bounds: widen the clip range until positive tokens make up their share of the step's objective.

Source: arXiv:2510.18927, equation 8 and algorithm 1; the authors' repository reads both differently, so each reading is a
setting. In the value reading the share of negatives is max(r, c_low) |A|, so raising c_low can only lower the positive
share: once c_high is exhausted the search runs c_low to its end. The gradient reading counts unclipped tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.algorithms.cells.cell import ADVANTAGE, BEHAVIOR, Cell, Positive
from pipeline.algorithms.cells.drift import Drift

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancedBand(Cell):
    """Keeps A >= 0 with r <= c_high and A <= 0 with r >= c_low; the bounds are searched anew on every optimizer step."""

    target: float = 0.4
    """The balance to reach, in the measure of `balance`."""
    balance: Literal["share", "pos_neg", "net"] = "share"
    """share: P/(P+N), what the paper plots. pos_neg: P/N, the authors' code. net: P/|P-N|, equation 8 to the letter."""
    contribution: Literal["value", "gradient"] = "value"
    """value: clipped objective terms (paper and code). gradient: r |A| of unclipped tokens."""
    order: Literal["high_first", "low_first"] = "high_first"
    """Which bound moves first: the upper one (paper) or the lower one (code)."""
    low_start: float = 0.6
    low_end: float = 0.9
    low_step: Positive = 0.02
    high_start: float = 1.2
    high_end: float = 3.0
    high_step: Positive = 0.05
    needs = (BEHAVIOR,)
    whole_step = True
    ignores = (ADVANTAGE,)

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        low, high = self.bounds(drift)
        ratio, advantage = drift.ratio_of("token"), drift.advantage
        return ((advantage >= 0) & (ratio <= high)) | ((advantage <= 0) & (ratio >= low))

    def bounds(self, drift: Drift) -> tuple[float, float]:
        """(c_low, c_high). Steps are counted in integers, so that the ends are met exactly."""
        lows = _grid(self.low_start, self.low_end, self.low_step)
        highs = _grid(self.high_start, self.high_end, self.high_step)
        low = high = 0
        while self.measure(drift, lows[low], highs[high]) < self.target:
            can_raise_low, can_raise_high = low + 1 < len(lows), high + 1 < len(highs)
            if can_raise_high and (self.order == "high_first" or not can_raise_low):
                high += 1
            elif can_raise_low:
                low += 1
            else:
                break
        return lows[low], highs[high]

    def measure(self, drift: Drift, low: float, high: float) -> float:
        """How much of the step's objective is positive, between bounds.

        1 (or infinity) if nothing is negative; 0 if nothing is positive, also where all tokens are clipped, so that the search
        goes on until some pull again; infinity, which ends the search, if no token has an advantage.
        """
        ratio, advantage = drift.ratio_of("token"), drift.advantage
        if self.contribution == "value":
            terms = (ratio * advantage).minimum(ratio.clamp(low, high) * advantage)
        else:
            open_ = ((advantage > 0) & (ratio <= high)) | ((advantage < 0) & (ratio >= low))
            terms = ratio * advantage * open_
        positive = float(drift.sum_over_step(terms.clamp(min=0.0)))
        negative = -float(drift.sum_over_step(terms.clamp(max=0.0)))
        if positive == 0:
            return 0.0 if float(drift.sum_over_step(advantage.abs())) > 0 else float("inf")
        parts = {"share": positive + negative, "pos_neg": negative, "net": abs(positive - negative)}
        return positive / parts[self.balance] if parts[self.balance] > 0 else float("inf")


def _grid(start: float, end: float, step: float) -> list[float]:
    count = max(int((end - start) / step + 1e-9), 0)
    return [start + step * i for i in range(count + 1)]
