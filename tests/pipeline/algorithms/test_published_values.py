"""Loss and gradient of every algorithm on the fixed example of conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.algorithms import resolve
from pipeline.algorithms.tokens import Tokens, Totals

FixedExample = Callable[..., tuple[Tokens, Totals]]


def test_loss_of_the_fixed_example_is_the_published_one(published: Any, fixed_example: FixedExample) -> None:
    tokens, totals = fixed_example(published.advantage, published.weight)
    assert published.algorithm.loss(tokens, totals).value.item() == pytest.approx(published.loss, abs=5e-7)


def test_gradient_of_the_fixed_example_is_the_published_one(published: Any, fixed_example: FixedExample) -> None:
    tokens, totals = fixed_example(published.advantage, published.weight)
    published.algorithm.loss(tokens, totals).value.backward()
    assert tokens.logprobs.grad is not None
    expected = [value for row in published.gradient for value in row]
    assert (9 * tokens.logprobs.grad).tolist() == pytest.approx(expected, abs=5e-5)


def test_grpo_averages_each_completion_first(fixed_example: FixedExample) -> None:
    # -(.75 + .9 + .9 + .525 + .225) / 5 = -.66 and (.25 + .2 + .2 + .875) / 4 = .38125
    loss = resolve("grpo").loss(*fixed_example())
    assert loss.value.item() == pytest.approx((-0.66 + 0.38125) / 2)


def test_tokens_outside_the_trust_region_are_reported_as_stopped(fixed_example: FixedExample) -> None:
    stopped = resolve("grpo").loss(*fixed_example()).stopped
    assert torch.nonzero(stopped)[:, 0].tolist() == [1, 2, 6, 7]
