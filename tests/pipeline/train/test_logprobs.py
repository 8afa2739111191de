"""Tiled logprobs, entropies and losses against log_softmax on all logits, in fp64 where gradients are compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.train import head
from pipeline.train.following import Following
from pipeline.train.logprobs import Projection, linear_logprobs

TOKENS, WIDTH, VOCABULARY = 7, 5, 11
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


@dataclass(frozen=True)
class Some:
    """A chunk of rows that no other one has."""

    tokens: slice

    @property
    def opens(self) -> tuple[slice, ...]:
        return (self.tokens,)

    closes = opens


def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    return linear_logprobs(hidden, weight, bias, Following.one_each(targets), temperature)


def inputs(tokens: int = TOKENS, bias: bool = True, dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY) -> Inputs:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=random, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, generator=random, dtype=dtype, requires_grad=True)
    offset = torch.randn(vocabulary, generator=random, dtype=dtype, requires_grad=True) if bias else None
    targets = torch.randint(vocabulary, (tokens,), generator=random)
    temperature = 0.5 + torch.rand(tokens, generator=random, dtype=dtype)
    return hidden, weight, offset, targets, temperature


def all_at_once(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    log_p = (torch.nn.functional.linear(hidden, weight, bias) / temperature[:, None]).log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss from the numbers of some tokens, and their logprobs and entropies."""


def some_loss(numbers: Tensor, logprobs: Tensor, entropy: Tensor) -> Tensor:
    return ((1.0 + numbers) * logprobs + (1.0 + numbers) ** 2 * entropy.sin()).sum()


Found = tuple[Tensor, list[Tensor]]
"""A loss, and its gradients in those of hidden, weight and bias that are trained."""


def in_chunks(given: Inputs, chunks: Sequence[slice], loss: Callable[[slice, Tensor, Tensor], Tensor]) -> Found:
    """The sum of the losses of chunks, as a training step goes over them."""
    hidden, weight, bias, targets, temperature = given
    longest = max((tokens.stop - tokens.start for tokens in chunks), default=0)
    projection = Projection(hidden.detach(), weight, bias, Following.one_each(targets), temperature, longest)
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for tokens in chunks:
        value = loss(tokens, *projection(Some(tokens)))
        assert value.dtype == total.dtype
        if value.requires_grad:
            torch.autograd.backward(value)
        total += value.detach().sum()
    with fresh_gradients(given) as trained:
        projection.backward(hidden)
        return total, [tensor.grad for tensor in trained if tensor.grad is not None]


@contextmanager
def fresh_gradients(given: Inputs) -> Iterator[list[Tensor]]:
    trained = [tensor for tensor in given[:3] if tensor is not None and tensor.requires_grad]
    for tensor in trained:
        tensor.grad = None
    yield trained
    for tensor in trained:
        tensor.grad = None


def tiled(given: Inputs, loss: Losses, cuts: Sequence[int] = ()) -> Found:
    """The loss over chunks that end at some tokens."""
    numbers = torch.arange(len(given[0]))
    chunks = [slice(start, end) for start, end in itertools.pairwise([0, *cuts, len(given[0])])]
    return in_chunks(given, chunks, lambda tokens, *values: loss(numbers[tokens], *values))


def at_once(given: Inputs, loss: Losses) -> Found:
    value = loss(torch.arange(len(given[0])), *all_at_once(*given))
    trained = [tensor for tensor in given[:3] if tensor is not None and tensor.requires_grad]
    return value.detach(), list(torch.autograd.grad(value, trained))


def cut(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, kept: int = 0) -> None:
    """Work in tiles of rows x columns, and keep so many logits for the backward pass."""
    monkeypatch.setitem(head.TILES, "cpu", (rows, columns))
    monkeypatch.setitem(head.KEPT_LOGITS, "cpu", kept)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept", [0, 4 * VOCABULARY, 100 * VOCABULARY])
@pytest.mark.parametrize("columns", [1, 4, VOCABULARY, 100])
@pytest.mark.parametrize("rows", [1, 2, 3, TOKENS, 100])
def test_values_and_gradients_are_those_of_log_softmax_whatever_the_tiles_and_chunks(
    rows: int, columns: int, kept: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, rows, columns, kept)
    given = inputs(bias=bias)
    torch.testing.assert_close(forward(*given), all_at_once(*given), rtol=1e-12, atol=1e-12)
    expected, of_expected = at_once(given, some_loss)
    for cuts in ([], [3], [1, 2, 6]):
        found, of_found = tiled(given, some_loss, cuts)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(of_found, of_expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_agree_with_finite_differences(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 2, 4, 2 * VOCABULARY)
    hidden, weight, offset, targets, temperature = inputs(tokens=3, bias=bias)

    def function(*parts: Tensor) -> Found:
        return tiled((parts[0], parts[1], parts[2] if bias else None, targets, temperature), some_loss)

    parts = [part for part in (hidden, weight, offset) if part is not None]
    found = function(*parts)[1]
    for number, part in enumerate(parts):
        for place in range(part.numel()):
            step = torch.zeros_like(part)
            step.view(-1)[place] = 1e-6
            up, down = (function(*parts[:number], part.detach() + sign * step, *parts[number + 1 :])[0] for sign in (1, -1))
            assert (up - down).item() / 2e-6 == pytest.approx(float(found[number].flatten()[place]), rel=1e-6, abs=1e-6)


def test_gradients_are_added_to_what_is_there() -> None:
    given = inputs()
    once = at_once(given, some_loss)[1]
    hidden, weight, bias, *rest = given
    for _ in range(2):
        projection = Projection(hidden.detach(), weight, bias, Following.one_each(rest[0]), rest[1], len(hidden))
        torch.autograd.backward(some_loss(torch.arange(len(hidden)), *projection(Some(slice(0, len(hidden))))))
        projection.backward(hidden)
    torch.testing.assert_close([2 * tensor for tensor in once], [tensor.grad for tensor in given[:3]], rtol=1e-11, atol=1e-11)


def test_tokens_without_a_gradient_give_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 2, 4, 4 * VOCABULARY)
    given = inputs()

    def loss(numbers: Tensor, logprobs: Tensor, _: Tensor) -> Tensor:
        return logprobs @ (numbers % 4 > 1).double()

    found, expected = tiled(given, loss, [4])[1], at_once(given, loss)[1]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("used", [0, 1])
def test_either_of_logprobs_and_entropies_may_be_used_alone(used: int) -> None:
    given = inputs()

    def loss(numbers: Tensor, *values: Tensor) -> Tensor:
        return ((1.0 + numbers) * values[used]).sum()

    found, expected = tiled(given, loss)[1], at_once(given, loss)[1]
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_a_frozen_head_gets_no_gradient_and_costs_no_memory_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, *rest = inputs()
    assert bias is not None
    expected = tiled((hidden, weight, bias, *rest), some_loss)[1][0]
    frozen = (hidden, weight.detach(), bias.detach(), *rest)
    monkeypatch.setattr(
        torch, "zeros_like", lambda tensor, **_: tensor.new_zeros(tensor.shape if len(tensor) == TOKENS else 1 / 0)
    )
    (gradient,) = tiled(frozen, some_loss)[1]
    assert torch.equal(gradient, expected)


def test_temperature_divides_the_logits_of_each_token() -> None:
    weight = torch.tensor([[0.0], [1.0]])
    hidden, targets = torch.tensor([[2.0], [2.0]]), torch.tensor([1, 1])
    found, _ = forward(hidden, weight, None, targets, torch.tensor([1.0, 0.5]))
    assert found.tolist() == pytest.approx(
        [-torch.log1p(torch.exp(torch.tensor(-logit))).item() for logit in (2.0, 4.0)], abs=1e-6
    )


def test_entropy_of_a_uniform_distribution_is_the_log_of_its_size() -> None:
    _, entropy = forward(torch.zeros(1, 3), torch.randn(8, 3), None, torch.tensor([0]), torch.ones(1))
    assert entropy.item() == pytest.approx(torch.log(torch.tensor(8.0)).item())


def test_large_logits_stay_finite() -> None:
    given = torch.tensor([[1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]]), None, torch.tensor([1]), torch.ones(1)
    found, entropy = forward(*given)
    assert found.item() == pytest.approx(-2e4)
    assert entropy.item() == pytest.approx(0, abs=1e-6)
    (gradient,) = tiled(given, some_loss)[1]
    assert gradient.isfinite().all()


def test_no_tokens_give_no_logprobs_and_no_gradient() -> None:
    given = inputs(tokens=0)
    assert [len(result) for result in forward(*given)] == [0, 0]
    for found, gradients in (in_chunks(given, [], some_loss), in_chunks(given, [slice(0, 0)], lambda _, one, __: one.sum())):
        assert found == 0
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in given[:3] if tensor is not None]
        assert not any(gradient.any() for gradient in gradients)


def test_a_chunk_may_be_empty_or_have_nothing_to_learn_from() -> None:
    given = inputs()
    chunks = [slice(0, 3), slice(3, 3), slice(3, TOKENS)]

    def loss(tokens: slice, logprobs: Tensor, _: Tensor) -> Tensor:
        return torch.zeros(1, dtype=logprobs.dtype) if tokens == chunks[2] else logprobs.sum()

    torch.testing.assert_close(in_chunks(given, chunks, loss), at_once(given, lambda _, logprobs, __: logprobs[:3].sum()))


def test_a_loss_may_change_its_logprobs_in_place() -> None:
    given = inputs()
    found, expected = (of(given, lambda _, logprobs, __: logprobs.exp_().sum()) for of in (tiled, at_once))
    torch.testing.assert_close(found, expected)


def test_logits_of_no_weight_at_all_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    given = torch.tensor([[400.0], [-3.0]], requires_grad=True), weight, None, torch.tensor([0, 1]), torch.ones(2)
    kept = tiled(given, some_loss)[1]
    cut(monkeypatch, 4, 4, kept=0)
    again = tiled(given, some_loss)[1]
    torch.testing.assert_close(kept, again)


def test_the_gradient_of_a_chunk_is_made_once_and_before_the_next_one() -> None:
    hidden, weight, bias, targets, temperature = inputs()
    projection = Projection(hidden.detach(), weight, bias, Following.one_each(targets), temperature, 4)
    loss = projection(Some(slice(0, 4)))[0].sum()
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(AssertionError, match="runs once, and before the next"):
        torch.autograd.backward(loss)
    early = projection(Some(slice(0, 4)))[0].sum()
    projection(Some(slice(4, 7)))
    with pytest.raises(AssertionError, match="runs once, and before the next"):
        torch.autograd.backward(early)


def test_bf16_states_give_fp32_logprobs_and_gradients_of_the_states_own_type() -> None:
    hidden, weight, bias, targets, _ = inputs(dtype=torch.bfloat16)
    given = hidden, weight.detach().float().requires_grad_(), bias.detach().float().requires_grad_(), targets, torch.ones(TOKENS)  # type: ignore[union-attr]
    found = forward(*given)
    assert [result.dtype for result in found] == [torch.float32] * 2
    exact = all_at_once(*(tensor.detach().double() if tensor.is_floating_point() else tensor for tensor in given))  # type: ignore[arg-type]
    torch.testing.assert_close([result.double() for result in found], list(exact), rtol=0, atol=0.05)
    loss, gradients = tiled(given, some_loss)
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("entropy_counts", [0.0, 0.1])
@pytest.mark.parametrize("p", [1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.995, 0.999, 0.9999])
def test_in_bf16_no_gradient_is_worse_than_that_of_all_logits_at_once(
    p: float, entropy_counts: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, 16, 200, kept)
    given = tokens_of_probability(p)

    def loss(_: Tensor, logprobs: Tensor, entropy: Tensor) -> Tensor:
        return logprobs.sum() + entropy_counts * entropy.sum()

    def plain(hidden: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        log_p = (hidden @ weight.T).float().log_softmax(-1)
        return log_p.gather(-1, given[3][:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    exact = at_once((*(tensor.detach().double().requires_grad_() for tensor in given[:2]), *given[2:]), loss)[1]  # type: ignore[arg-type, union-attr]
    of_plain = torch.autograd.grad(loss(given[3], *plain(*given)), given[:2])
    for found, other, expected in zip(tiled(given, loss)[1], of_plain, exact, strict=True):
        error, of_other = (float((one.double() - expected).norm() / expected.norm()) for one in (found, other))
        assert error <= 1.05 * of_other


def tokens_of_probability(p: float, tokens: int = 64, width: int = 64, vocabulary: int = 512) -> Inputs:
    """Hidden states and weights in bf16 under which each token's target has about this probability."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=random).bfloat16()
    start, targets = 0.3 * torch.randn(tokens, width, generator=random), torch.randint(vocabulary, (tokens,), generator=random)
    low, high = torch.full((tokens, 1), -3.0), torch.full((tokens, 1), 3.0)
    for _ in range(50):
        middle = (low + high) / 2
        log_p = ((start + middle * weight[targets].float()) @ weight.float().T).log_softmax(-1)
        below = log_p.gather(-1, targets[:, None]).exp() < p
        low, high = middle.where(below, low), high.where(below, middle)
    hidden = (start + low * weight[targets].float()).bfloat16()
    return hidden.requires_grad_(), weight.requires_grad_(), None, targets, torch.ones(tokens)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("cuts", [range(8, 512, 8), []])
@pytest.mark.parametrize("tokens", [64, 512])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(
    tokens: int, cuts: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, rows = 300, 8
    cut(monkeypatch, rows, 50, kept=2 * rows * vocabulary)
    given = inputs(tokens=tokens, vocabulary=vocabulary)
    with Largest() as largest:
        tiled(given, some_loss, [end for end in cuts if end < tokens])
    assert largest.elements == max((1 if cuts else 2) * rows * vocabulary, tokens * WIDTH)


@pytest.mark.parametrize("entropies", [False, True])
def test_a_chunk_that_fits_is_computed_once(entropies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 4, 5, kept=8 * VOCABULARY)
    given = inputs(tokens=20, bias=False)

    def products(cuts: Sequence[int]) -> int:
        with Counted() as counted:
            tiled(given, some_loss if entropies else lambda _, logprobs, __: logprobs.sum(), cuts)
        return counted.products

    tiles = 5 * 3
    assert products([8, 16]) == 3 * tiles
    assert products([]) == 3 * tiles + (tiles - 2 * 3)


class Counted(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += operation.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return operation(*args, **(kwargs or {}))


def test_without_a_gradient_no_logits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 8, 50, kept=100_000)
    given = inputs(tokens=64, vocabulary=300)
    with Largest() as largest:
        forward(*given)
    assert largest.elements == 8 * 50
