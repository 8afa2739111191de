"""The fixed example that losses are checked against, and the table of what each algorithm makes of it.

To check one more algorithm, add a row to PUBLISHED; `test_published_values.py` runs over the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.aggregation import TokenMean
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]

RATIOS = ((1.0, 1.5, 3.5, 0.7, 0.3), (1.0, 0.7, 0.3, 3.5, 2.0))
"""pi/mu of two completions; log mu is -1 everywhere. The last token of the second is masked out: 9 tokens count."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a method makes of the fixed example. Source: the loss of Trinity-RFT 0.6.0, run on it in fp64."""

    name: str
    algorithm: Algorithm
    loss: float
    gradient: tuple[tuple[float, ...], tuple[float, ...]]
    """9 x dL/dlogp of each token."""
    advantage: tuple[float, float] = (0.75, -0.25)
    weight: tuple[float, float] = (1.0, 1.0)


PUBLISHED = (
    Published(
        name="reinforce",
        algorithm=resolve("reinforce"),
        loss=0.288872,
        gradient=((-0.75, -0.75, -0.75, -0.75, -0.75), (0.25, 0.25, 0.25, 0.25, 0)),
    ),
    Published(
        name="rec-oneside-is",
        algorithm=resolve("rec-oneside-is"),
        loss=0.214368,
        gradient=((-0.75, 0, 0, -0.525, -0.225), (0.25, 0, 0, 0.875, 0)),
    ),
    Published(
        name="rec-oneside-nois",
        algorithm=resolve("rec-oneside-nois"),
        loss=0.359297,
        gradient=((-0.75, 0, 0, -0.75, -0.75), (0.25, 0, 0, 0.25, 0)),
    ),
    Published(
        name="rec-oneside-nois, wide",
        algorithm=resolve("rec-oneside-nois", {"low": 0.6, "high": 2.0}),
        loss=0.371157,
        gradient=((-0.75, -0.75, 0, -0.75, -0.75), (0.25, 0.25, 0, 0.25, 0)),
    ),
    Published(
        name="rec-twoside-is",
        algorithm=resolve("rec-twoside-is"),
        loss=0.055556,
        gradient=((-0.75, 0, 0, 0, 0), (0.25, 0, 0, 0, 0)),
    ),
    Published(
        name="rec-ring-nois",
        algorithm=resolve("rec-ring-nois"),
        loss=0.246241,
        gradient=((-0.75, 0, 0, 0, -0.75), (0.25, 0, 0, 0.25, 0)),
    ),
    Published(
        name="rec-gspo-nois",
        algorithm=resolve("rec-gspo-nois"),
        loss=0.0,
        gradient=((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    ),
    Published(
        name="opmd",
        algorithm=resolve("opmd"),
        loss=0.360613,
        gradient=((-0.75, -0.6689, -0.4994, -0.8213, -0.9908), (0.25, 0.1787, 0.0092, 0.5006, 0)),
    ),
    Published(
        name="reinforce as Trinity's simple opmd at tau 1, which halves it",
        algorithm=resolve("reinforce"),
        advantage=(0.375, -0.125),
        loss=0.144436,
        gradient=((-0.375, -0.375, -0.375, -0.375, -0.375), (0.125, 0.125, 0.125, 0.125, 0)),
    ),
    Published(
        name="rec-twoside-nois within sppo's bounds; sppo's own value is 0, its gradient is this one",
        algorithm=resolve("rec-twoside-nois", {"low": 1 - 1 / 1.3, "high": 0.3}),
        loss=0.055556,
        gradient=((-0.75, 0, 0, 0, 0), (0.25, 0, 0, 0, 0)),
    ),
    Published(
        name="asymre",
        algorithm=resolve("asymre"),
        advantage=(0.85, -0.15),
        loss=0.391208,
        gradient=((-0.85, -0.85, -0.85, -0.85, -0.85), (0.15, 0.15, 0.15, 0.15, 0)),
    ),
    Published(
        name="red-weight",
        algorithm=resolve("red-weight"),
        weight=(math.exp(0.75), math.exp(-0.25)),
        loss=0.771675,
        gradient=((-1.5878, -1.5878, -1.5878, -1.5878, -1.5878), (0.1947, 0.1947, 0.1947, 0.1947, 0)),
    ),
    Published(
        name="topr of tokens, over all tokens",
        algorithm=resolve("topr", {"importance.level": "token"}).replace(aggregation=TokenMean()),
        loss=0.343032,
        gradient=((-0.75, -0.75, -0.75, -0.75, -0.75), (0.25, 0.175, 0.075, 0.25, 0)),
    ),
    Published(
        name="cispo",
        algorithm=resolve("cispo"),
        loss=0.190491,
        gradient=((-0.75, -0.96, -0.96, -0.525, -0.225), (0.25, 0.175, 0.075, 0.32, 0)),
    ),
    Published(
        name="ppo, dual clip",
        algorithm=resolve("grpo", {"dual": 3.0}).replace(aggregation=TokenMean()),
        loss=-0.211111,
        gradient=((-0.75, 0, 0, -0.525, -0.225), (0.25, 0, 0, 0, 0)),
    ),
    Published(
        name="ppo, no dual clip",
        algorithm=resolve("grpo").replace(aggregation=TokenMean()),
        loss=-0.197222,
        gradient=((-0.75, 0, 0, -0.525, -0.225), (0.25, 0, 0, 0.875, 0)),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than they do on tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=PUBLISHED, ids=lambda published: published.name)
def published(request: pytest.FixtureRequest) -> Published:
    """Each row of the table in turn."""
    return request.param


@pytest.fixture(scope="session")
def make_tokens() -> MakeTokens:
    return tokens_of


@pytest.fixture(scope="session")
def drift_of() -> Callable[..., Drift]:
    """drift_of(ratios of each sequence, advantages): how far the policy has moved from log mu = -1."""

    def make(ratios: Sequence[Sequence[float]], advantage: Sequence[float], **columns: Any) -> Drift:
        tokens = tokens_of([[-1.0] * len(row) for row in ratios], advantage, **columns)
        log_ratio = torch.tensor([math.log(ratio) for row in ratios for ratio in row], dtype=torch.float64)
        return Drift(measured=log_ratio, advantage=tokens.per_token(tokens.advantage), tokens=tokens)

    return make


@pytest.fixture(scope="session")
def pull() -> Callable[[Algorithm, Tokens], tuple[float, torch.Tensor]]:
    """pull(algorithm, tokens): loss of a step that is these tokens, and its gradient in the logprob of each."""

    def run(algorithm: Algorithm, tokens: Tokens) -> tuple[float, torch.Tensor]:
        totals = Totals(tokens=float(tokens.mask.sum()), sequences=float(len(tokens.advantage)))
        value = algorithm.loss(tokens, totals).value
        (gradient,) = torch.autograd.grad(value, tokens.logprobs, allow_unused=True, materialize_grads=True)
        return value.item(), gradient

    return run


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
    """Tokens of some sequences, in fp64, from a list per sequence.

    Unless given: behavior, proximal and reference are the logprobs themselves, nothing is masked out, entropies are 0,
    weights 1, ages 1, all sequences are of one group and numbered, and there are no pairs.
    """
    sizes = [len(row) for row in logprobs]
    given: dict[str, Any] = {
        "mask": [[True] * size for size in sizes],
        "entropy": [[0.0] * size for size in sizes],
        "weight": [1.0] * len(sizes),
    }
    given |= {"behavior": logprobs, "proximal": logprobs, "reference": logprobs, "age": [1.0] * len(sizes)}
    given |= {"group": [0] * len(sizes), "number": list(range(len(sizes))), "pairs": None} | columns
    pairs = given["pairs"]
    preference = given.get("preference", [1.0] * len(pairs or ()))
    mask = _flat(given["mask"], torch.bool)
    sequence = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Tokens(
        logprobs=_flat(logprobs).requires_grad_(),
        entropy=_flat(given["entropy"]).requires_grad_(),
        behavior=_flat(given["behavior"]),
        proximal=_flat(given["proximal"]),
        reference=_flat(given["reference"]),
        mask=mask,
        sequence=sequence,
        advantage=torch.tensor(advantage, dtype=torch.float64),
        weight=torch.tensor(given["weight"], dtype=torch.float64),
        lengths=torch.zeros(len(sizes), dtype=torch.float64).index_add(0, sequence, mask.double()),
        group=torch.tensor(given["group"]),
        number=torch.tensor(given["number"]),
        age=torch.tensor(given["age"], dtype=torch.float64),
        pairs=None if pairs is None else torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        preference=None if pairs is None else torch.tensor(preference, dtype=torch.float64),
    )


def _flat(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)
