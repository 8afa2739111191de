"""pass@k and its interval."""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray


def pass_at_k(solved: NDArray[np.int64], samples: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Unbiased pass@k of each prompt: 1 - C(n - c, k) / C(n, k), with c of n completions solved.

    Source: Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    pairs = zip(solved.tolist(), samples.tolist(), strict=True)
    return np.array([1.0 - comb(n - c, k) / comb(n, k) for c, n in pairs], np.float64)


def bootstrap_interval(values: NDArray[np.float64], resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over prompts, from resampling the prompts."""
    draws = np.random.default_rng(seed)
    means = [values[draws.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
