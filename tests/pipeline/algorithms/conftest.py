"""The fixed example that losses are checked against, and the table of what each algorithm makes of it.

To check one more algorithm, add a row to PUBLISHED; `test_published_values.py` runs over the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pipeline.algorithms.cells.aggregation import TokenMean
from pipeline.algorithms.cells.trust_region import OneSide, TwoSide
from pipeline.algorithms.grpo import GRPO
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.rec import REC_ONESIDE_IS, REC_ONESIDE_NOIS
from pipeline.algorithms.reinforce import REINFORCE
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]

RATIOS = ((1.0, 1.5, 3.5, 0.7, 0.3), (1.0, 0.7, 0.3, 3.5, 2.0))
"""pi/mu of two completions; log mu is -1 everywhere. The last token of the second is masked out: 9 tokens count."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a method makes of the fixed example. Source: the loss of Trinity-RFT 0.6.0, run on it in fp64."""

    name: str
    algorithm: PolicyGradient
    loss: float
    gradient: tuple[tuple[float, ...], tuple[float, ...]]
    """9 x dL/dlogp of each token."""
    advantage: tuple[float, float] = (0.75, -0.25)
    weight: tuple[float, float] = (1.0, 1.0)


PUBLISHED = (
    Published(
        name="reinforce",
        algorithm=REINFORCE,
        loss=0.288872,
        gradient=((-0.75, -0.75, -0.75, -0.75, -0.75), (0.25, 0.25, 0.25, 0.25, 0)),
    ),
    Published(
        name="rec-oneside-is",
        algorithm=REC_ONESIDE_IS,
        loss=0.214368,
        gradient=((-0.75, 0, 0, -0.525, -0.225), (0.25, 0, 0, 0.875, 0)),
    ),
    Published(
        name="rec-oneside-nois",
        algorithm=REC_ONESIDE_NOIS,
        loss=0.359297,
        gradient=((-0.75, 0, 0, -0.75, -0.75), (0.25, 0, 0, 0.25, 0)),
    ),
    Published(
        name="rec-oneside-nois, wide",
        algorithm=REC_ONESIDE_NOIS.replace(trust_region=OneSide(low=0.6, high=2.0)),
        loss=0.371157,
        gradient=((-0.75, -0.75, 0, -0.75, -0.75), (0.25, 0.25, 0, 0.25, 0)),
    ),
    Published(
        name="rec-twoside-is",
        algorithm=REC_ONESIDE_IS.replace(trust_region=TwoSide()),
        loss=0.055556,
        gradient=((-0.75, 0, 0, 0, 0), (0.25, 0, 0, 0, 0)),
    ),
    Published(
        name="ppo, no dual clip",
        algorithm=GRPO.replace(aggregation=TokenMean()),
        loss=-0.197222,
        gradient=((-0.75, 0, 0, -0.525, -0.225), (0.25, 0, 0, 0.875, 0)),
    ),
    Published(
        name="asymre .1 as a shifted advantage",
        algorithm=REINFORCE,
        advantage=(0.85, -0.15),
        loss=0.391208,
        gradient=((-0.85, -0.85, -0.85, -0.85, -0.85), (0.15, 0.15, 0.15, 0.15, 0)),
    ),
    Published(
        name="red-weight T=1 as a row weight",
        algorithm=REINFORCE,
        weight=(math.exp(0.75), math.exp(-0.25)),
        loss=0.771675,
        gradient=((-1.5878, -1.5878, -1.5878, -1.5878, -1.5878), (0.1947, 0.1947, 0.1947, 0.1947, 0)),
    ),
)


@pytest.fixture(params=PUBLISHED, ids=lambda published: published.name)
def published(request: pytest.FixtureRequest) -> Published:
    """Each row of the table in turn."""
    return request.param


@pytest.fixture(scope="session")
def make_tokens() -> MakeTokens:
    return tokens_of


@pytest.fixture
def fixed_example() -> Callable[..., tuple[Tokens, Totals]]:
    """fixed_example(advantage, weight): the example's tokens, in fp64, and their totals."""

    def make(advantage: Sequence[float] = (0.75, -0.25), weight: Sequence[float] = (1.0, 1.0)) -> tuple[Tokens, Totals]:
        logprobs = [[-1 + math.log(ratio) for ratio in row] for row in RATIOS]
        mask = [[True] * 5, [True] * 4 + [False]]
        behavior = [[-1.0] * 5] * 2
        return tokens_of(logprobs, advantage, behavior=behavior, mask=mask, weight=weight), Totals(tokens=9, sequences=2)

    return make


def tokens_of(logprobs: Sequence[Sequence[float]], advantage: Sequence[float], **columns: Any) -> Tokens:
    """Tokens of some sequences, in fp64, from a list per sequence. `behavior`, `mask`, `entropy`, `weight` are optional."""
    sizes = [len(row) for row in logprobs]
    behavior = columns.get("behavior", logprobs)
    mask = _flat(columns.get("mask") or [[True] * size for size in sizes], torch.bool)
    sequence = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Tokens(
        logprobs=_flat(logprobs).requires_grad_(),
        entropy=_flat(columns.get("entropy") or [[0.0] * size for size in sizes]).requires_grad_(),
        behavior=None if behavior is None else _flat(behavior),
        mask=mask,
        sequence=sequence,
        advantage=torch.tensor(advantage, dtype=torch.float64),
        weight=torch.tensor(columns.get("weight") or [1.0] * len(sizes), dtype=torch.float64),
        lengths=torch.zeros(len(sizes), dtype=torch.float64).index_add(0, sequence, mask.double()),
    )


def _flat(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)
