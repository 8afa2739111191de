"""Corners that every algorithm must come through with a finite loss and gradient, in fp32 as in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.algorithms import ALGORITHMS, Algorithm
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
SMALL, LARGE = -20.1, -0.1
PLAIN: dict[str, Any] = {
    "logprobs": [[-0.1, -3.0], [-0.7], [-1.5, -0.4]],
    "advantage": [1.0, -0.5, -0.5],
    "behavior": [[-0.3, -2.0], [-0.9], [-1.0, -0.5]],
    "proximal": [[-0.2, -2.5], [-0.8], [-1.2, -0.5]],
    "reference": [[-0.4, -2.0], [-0.6], [-1.3, -0.3]],
    "entropy": [[0.5, 1.0], [0.1], [0.0, 2.0]],
    "age": [0.0, 1.0, 5.0],
    "pairs": [[0, 1], [0, 2]],
    "preference": [1.0, 0.7],
}
ROWS = ("behavior", "proximal", "reference")


def far(there: float, here: float) -> dict[str, Any]:
    """Every ratio is e^(here - there)."""
    return {"logprobs": [[here] * 2, [here], [here] * 2], **{name: [[there] * 2, [there], [there] * 2] for name in ROWS}}


UNKNOWN = [[-0.3, -math.inf], [-0.9], [-math.inf, -0.5]]
CORNERS: dict[str, dict[str, Any]] = {
    "advantages of zero": {"advantage": [0.0] * 3},
    "advantages of minus zero": {"advantage": [-0.0] * 3},
    "advantages of one sign": {"advantage": [-1.0] * 3},
    "weights of zero": {"weight": [0.0] * 3},
    "a group of one": {
        "logprobs": [[-0.1, -3.0]], "advantage": [0.0], **{name: [[-0.3, -2.0]] for name in ROWS},
        "entropy": [[0.5, 1.0]], "age": [1.0], "pairs": [], "preference": [],
    },
    "groups of one": {"group": [0, 1, 2], "pairs": [], "preference": []},
    "ratios of e^20": far(SMALL, LARGE),
    "ratios of e^-20": far(LARGE, SMALL),
    "ratios of e^200": far(-200.0, LARGE),
    "ratios of e^-200": far(LARGE, -200.0),
    "ratios of both kinds": {
        "logprobs": [[LARGE, SMALL], [-200.0], [LARGE, -200.0]],
        **{name: [[SMALL, LARGE], [LARGE], [-200.0, LARGE]] for name in ROWS},
    },
    "a completion without tokens that count": {"mask": [[True, True], [False], [True, False]]},
    "a step without tokens that count": {"mask": [[False, False], [False], [False, False]]},
    "no logprobs where a tool wrote": {"mask": [[True, False], [True], [False, True]], **dict.fromkeys(ROWS, UNKNOWN)},
    "a token that is certain": {"logprobs": [[0.0, 0.0], [0.0], [0.0, 0.0]]},
    "rows of the same policy": dict.fromkeys(ROWS, PLAIN["logprobs"]),
}  # fmt: skip
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())


def loss_and_gradient(algorithm: Algorithm, tokens: Tokens) -> tuple[float, torch.Tensor]:
    totals = Totals(tokens=float(tokens.mask.sum()), sequences=float(len(tokens.advantage)))
    value = algorithm.loss(tokens, totals).value
    inputs = (tokens.logprobs, tokens.entropy)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    assert value.dtype == torch.float32
    return value.item(), torch.stack(gradients)


@every_algorithm
@pytest.mark.parametrize("corner", CORNERS.values(), ids=CORNERS.keys())
def test_loss_and_gradient_are_finite(algorithm: Algorithm, corner: dict[str, Any], make_tokens: MakeTokens) -> None:
    tokens = in_fp32(make_tokens(**{**PLAIN, **corner}))
    loss, gradient = loss_and_gradient(algorithm, tokens)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    assert not gradient[:, ~tokens.mask].any()
    assert not algorithm.loss(tokens, Totals(tokens=1, sequences=1)).stopped[~tokens.mask].any()


def in_fp32(tokens: Tokens) -> Tokens:
    """The same tokens in fp32; their logprobs and entropies are leaves again."""
    values = {name: getattr(tokens, name) for name in Tokens.__dataclass_fields__}
    small = {
        name: value.detach().float() if value is not None and value.is_floating_point() else value
        for name, value in values.items()
    }
    small |= {name: small[name].requires_grad_() for name in ("logprobs", "entropy")}
    return Tokens(**small)
