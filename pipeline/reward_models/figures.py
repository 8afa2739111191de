"""How good a reward model is, on pairs that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.estimators import bootstrap_interval
from pipeline.reward_models.texts import TextPair

Scores = NDArray[np.float64]
BINS = 10
RESAMPLES = 1000


def figures(pairs: Sequence[TextPair], scores: Scores, seed: int) -> dict[str, Any]:
    """Accuracy with its 95 % interval over prompts, log loss, calibration, and what length has to do with it.

    Args:
        scores: [pairs, 2], of the chosen and of the rejected.
    """
    preference = np.array([pair.preference for pair in pairs])
    difference = scores[:, 0] - scores[:, 1]
    clear = preference != 0.5
    right = np.where(difference == 0, 0.5, difference > 0)[clear]
    prompts = [pair.prompt for pair, is_clear in zip(pairs, clear, strict=True) if is_clear]
    of_prompt = np.array([right[[one == prompt for one in prompts]].mean() for prompt in dict.fromkeys(prompts)])
    low, high = bootstrap_interval(of_prompt, RESAMPLES, seed) if len(of_prompt) else (None, None)
    tokens = np.array([pair.tokens for pair in pairs], np.float64)
    longer = np.sign(tokens[:, 0] - tokens[:, 1])[clear]
    wins = 1 / (1 + np.exp(-difference))
    losses = preference * np.logaddexp(0, -difference) + (1 - preference) * np.logaddexp(0, difference)
    return {
        "pairs": len(pairs),
        "ties": int((~clear).sum()),
        "accuracy": float(right.mean()) if len(right) else None,
        "accuracy_low": low,
        "accuracy_high": high,
        "log_loss": float(losses.mean()),
        "calibration_error": calibration_error(wins, preference),
        "length_correlation": _correlation(scores.ravel(), tokens.ravel()),
        "longer_is_better": float(((longer + 1) / 2).mean()) if len(longer) else None,
    }


def calibration_error(predicted: Scores, preference: Scores) -> float:
    """Mean distance of what is predicted from what was preferred, over ten equal ranges of predictions, by their pairs.

    Every pair counts in both orders, since which of the two is named first says nothing. 0 is best.

    >>> calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0]))
    0.4
    """
    both, wins = np.concatenate([predicted, 1 - predicted]), np.concatenate([preference, 1 - preference])
    places = np.minimum((both * BINS).astype(int), BINS - 1)
    gaps = [abs(float((both[places == place] - wins[places == place]).sum())) for place in range(BINS)]
    return round(sum(gaps) / len(both), 12)


def _correlation(one: Scores, other: Scores) -> float | None:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else None
