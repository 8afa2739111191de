"""Random steps, and their corners, as our losses and as the peers' take them.

The peers are TRL and Trinity-RFT, where they are installed (`make test-peers`). The losses are their own code. They
are methods of trainers, so a stand-in holds the settings and hands them logprobs in place of a model's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
LENGTHS = (5, 2, 7, 1, 4, 3)


@dataclass(frozen=True)
class Step:
    """A random step, as flat tokens and as padded rows of the same values."""

    tokens: Tokens
    logprobs: Tensor
    behavior: Tensor
    reference: Tensor
    mask: Tensor
    advantage: Tensor
    lengths: tuple[int, ...]

    def assert_same(self, algorithm: Algorithm, theirs: Tensor, *, values: bool = True, corner: bool = False) -> None:
        """Their loss and its gradient are ours. `values` false: the gradient alone. `corner`: which may be zero."""
        totals = Totals(tokens=float(self.mask.sum()), sequences=float(len(self.mask)))
        ours = algorithm.loss(self.tokens, totals).value
        (found,) = torch.autograd.grad(ours, self.tokens.logprobs)
        (expected,) = torch.autograd.grad(theirs, self.logprobs, allow_unused=True, materialize_grads=True)
        places = [row[:length] for row, length in zip(expected, self.lengths, strict=True)]
        torch.testing.assert_close(found, torch.cat(places), rtol=1e-6, atol=1e-9)
        assert corner or float(expected.abs().max()) > 0
        if values:
            assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-8)


@pytest.fixture(params=range(3))
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def step(make_tokens: MakeTokens) -> Callable[..., Step]:
    """step(seed, spread, holes): six completions whose log ratios have this standard deviation."""

    def make(seed: int, spread: float = 0.5, *, holes: bool = True) -> Step:
        random = torch.Generator().manual_seed(seed)
        shape = len(LENGTHS), max(LENGTHS)
        inside = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
        mask = inside & ((torch.rand(shape, generator=random) < 0.8) | (torch.arange(shape[1]) == 0)) if holes else inside
        logprobs, *noise = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3))
        logprobs = (-1.5 + 0.5 * logprobs).where(inside, torch.zeros((), dtype=torch.float64))
        behavior, reference = ((logprobs + spread * one).where(inside, logprobs) for one in noise)
        advantage = torch.tensor([1.0, -1.5, 0.5, 2.0, -0.3, -0.7], dtype=torch.float64)

        return step_of(make_tokens, logprobs, behavior, reference, mask, advantage, LENGTHS)

    return make


MakeStep = Callable[..., Step]


def step_of(
    make_tokens: MakeTokens,
    logprobs: Tensor,
    behavior: Tensor,
    reference: Tensor,
    mask: Tensor,
    advantage: Tensor,
    lengths: tuple[int, ...],
) -> Step:
    """From padded rows. Those of an even number of completions make pairs: the first half chosen, the second rejected."""

    def rows(values: Tensor) -> list[list[Any]]:
        return [row[:length].tolist() for row, length in zip(values, lengths, strict=True)]

    half = len(lengths) // 2
    columns = {"behavior": rows(behavior), "reference": rows(reference), "mask": rows(mask.bool())}
    tokens = make_tokens(rows(logprobs), advantage.tolist(), pairs=[[i, half + i] for i in range(half)], **columns)
    return Step(tokens, logprobs.detach().clone().requires_grad_(), behavior, reference, mask.double(), advantage, lengths)


HALF = math.log(2.0)
CORNERS: dict[str, Callable[[Step], dict[str, Tensor]]] = {
    "advantages of zero": lambda plain: {"advantage": torch.zeros_like(plain.advantage)},
    "a group of one": lambda plain: {name: getattr(plain, name)[:1] for name in PADDED},
    "equal rewards": lambda plain: {"advantage": torch.zeros_like(plain.advantage), "behavior": plain.logprobs.detach()},
    "ratios at the edges 1/2 and 2": lambda plain: {
        "logprobs": alternating(plain.mask, 0.0, -HALF), "behavior": alternating(plain.mask, -HALF, 0.0),
    },
    "ratios of e^20 and e^-20": lambda plain: {
        "logprobs": alternating(plain.mask, -1.0, -21.0), "behavior": alternating(plain.mask, -21.0, -1.0),
        "reference": torch.full_like(plain.reference, -1.0),
    },
    "-inf where a tool wrote": lambda plain: {},
    "a completion without tokens": lambda plain: {"mask": plain.mask * torch.tensor([1.0, 0, 1, 1, 1, 1])[:, None]},
    "a step without tokens": lambda plain: {"mask": torch.zeros_like(plain.mask)},
}  # fmt: skip
"""What is changed in a random step."""
PADDED = ("logprobs", "behavior", "reference", "mask", "advantage")


def alternating(mask: Tensor, even: float, odd: float) -> Tensor:
    """Rows whose tokens have two values in turn."""
    places = torch.arange(mask.shape[1]) + torch.arange(mask.shape[0])[:, None]
    return torch.where(places % 2 == 0, even, odd).double()


@pytest.fixture(params=CORNERS)
def cornered(request: pytest.FixtureRequest, step: MakeStep, make_tokens: MakeTokens) -> Step:
    """A random step taken to each corner in turn."""
    plain = step(0)
    values = {**{name: getattr(plain, name) for name in PADDED}, **CORNERS[request.param](plain)}
    some = step_of(make_tokens, **values, lengths=LENGTHS[: len(values["mask"])])
    if not request.param.startswith("-inf"):
        return some
    unknown = {name: getattr(some.tokens, name).masked_fill(~some.tokens.mask, -math.inf) for name in ("behavior", "reference")}
    return dataclasses.replace(some, tokens=dataclasses.replace(some.tokens, **unknown))  # the peers are given what they can bear
