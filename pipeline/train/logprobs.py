"""Logprobs and entropies of chosen tokens without ever holding all logits.

The vocabulary projection runs tile by tile, a tile being some positions by some of the vocabulary, and everything is done
to a tile while it lies in the cache. With logits l = h W^T / T of one position, running over the tiles:

    m = max l so far,   z = sum e^(l - m),   e = sum e^(l - m) l
    log Z = m + log z,   logprob = l[target] - log Z,   entropy = log Z - e / z

The backward pass computes a tile's logits again. Of the first positions it does not: their e^(l - m) are kept, as many as
fit into a fixed amount of memory. So peak memory does not grow with vocabulary x length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILES = {"cpu": (512, 4096), "cuda": (4096, 16384)}
"""Positions and vocabulary entries of a tile: 8 MiB of fp32 logits fit a CPU's cache; a GPU wants large products."""
KEPT_LOGITS = 1 << 27
"""Logits whose exponentials are kept for the backward pass: 512 MiB in fp32."""


def linear_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " tokens"],
    temperature: Float[Tensor, " tokens"],
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log p(target) and the entropy of softmax((hidden W^T + bias) / temperature), in fp32 (fp64 for fp64 input).

    Both results are differentiable in hidden, weight and bias. Products are in the type of `hidden`.
    """
    tile = TILES["cpu" if hidden.device.type == "cpu" else "cuda"]
    kept = KEPT_LOGITS if torch.is_grad_enabled() else 0
    temperature = temperature.to(torch.promote_types(hidden.dtype, torch.float32))
    with torch.autocast(hidden.device.type, enabled=False):
        given = hidden, weight, bias, targets, temperature, tile, kept
        logprobs, entropy = _LinearLogprobs.apply(*given)  # type: ignore[no-untyped-call]
    return logprobs, entropy


@dataclass(frozen=True)
class _Kept:
    """e^(l - m) of some positions, and the m of each of their tiles."""

    exponentials: Float[Tensor, "rows vocabulary"]
    maxima: list[Float[Tensor, " rows"]]


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor,
        tile: tuple[int, int],
        keep: int,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(hidden, weight, bias, temperature, tile)
        logprobs, entropy, normalizer = (torch.empty_like(temperature) for _ in range(3))
        ctx.kept = []
        for rows in head.rows():
            kept = None
            if rows.stop * len(weight) <= keep:
                kept = _Kept(temperature.new_empty(rows.stop - rows.start, len(weight)), [])
                ctx.kept.append(kept)
            logprobs[rows], entropy[rows], normalizer[rows] = _statistics(head, rows, targets[rows], kept)
        ctx.save_for_backward(hidden, weight, bias, targets, temperature, entropy, normalizer)
        ctx.tile = tile
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, temperature, entropy, normalizer = ctx.saved_tensors
        head = _Head(hidden, weight, bias, temperature, ctx.tile)
        of = _Gradients(head, weight, bias, *ctx.needs_input_grad[1:3])
        kept = dict(enumerate(ctx.kept))
        for number, rows in enumerate(head.rows()):
            one, other = (None if values is None or not values[rows].any() else values[rows] for values in gradients)
            if other is not None:
                _through_both(head, of, rows, normalizer[rows], entropy[rows], one, other)
            elif one is not None:
                _through_logprobs(head, of, rows, normalizer[rows], one, kept.get(number))
        if gradients[0] is not None:
            of.add_targets(targets, gradients[0])
        return *of.results(hidden), *(None,) * 4


def _statistics(head: _Head, rows: slice, targets: Tensor, kept: _Kept | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs, entropies and log-normalizers of some rows."""
    maximum = total = weighted = chosen = head.temperature[rows]
    for columns in head.columns():
        first = columns.start == 0
        logits = head.logits(rows, columns)
        highest = logits.amax(-1) if first else torch.maximum(maximum, logits.amax(-1))
        p = head.place(rows, columns) if kept is None else kept.exponentials[:, columns]
        torch.sub(logits, highest[:, None], out=p).exp_()
        here = targets - columns.start
        target = logits.gather(-1, here.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = target if first else torch.where((here >= 0) & (here < logits.shape[1]), target, chosen)
        shrunk = 0.0 if first else (maximum - highest).exp_()
        total = total * shrunk + p.sum(-1)
        weighted = weighted * shrunk + logits.mul_(p).sum(-1)
        maximum = highest
        if kept is not None:
            kept.maxima.append(highest)
    normalizer = maximum + total.log()
    return chosen - normalizer, normalizer - weighted / total, normalizer


def _through_logprobs(
    head: _Head, of: _Gradients, rows: slice, normalizer: Tensor, of_logprob: Tensor, kept: _Kept | None
) -> None:
    """d loss / d l = of_logprob (1[target] - p), less its first term."""
    for number, columns in enumerate(head.columns()):
        if kept is None:
            p = head.logits(rows, columns).sub_(normalizer[:, None]).exp_()
            of.add(rows, columns, p, -of_logprob)
        else:
            of.add(rows, columns, kept.exponentials[:, columns], -of_logprob * (kept.maxima[number] - normalizer).exp_())


def _through_both(
    head: _Head, of: _Gradients, rows: slice, normalizer: Tensor, entropy: Tensor, of_logprob: Tensor | None, of_entropy: Tensor
) -> None:
    """d loss / d l = of_logprob (1[target] - p) - of_entropy p (log p + entropy), less its first term."""
    for columns in head.columns():
        log_p = head.logits(rows, columns).sub_(normalizer[:, None])
        factor = (log_p + entropy[:, None]).mul_(of_entropy[:, None])
        if of_logprob is not None:
            factor += of_logprob[:, None]
        of.add(rows, columns, log_p.exp_().mul_(factor), -torch.ones_like(normalizer))


class _Head:
    """The vocabulary projection, tile by tile. Dividing hidden states by the temperature spares dividing the logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor, tile: tuple[int, int]) -> None:
        self.scaled = (hidden / temperature[:, None]).to(hidden.dtype)
        self.temperature = temperature
        self._weight, self._bias, self._tile = weight, bias, tile
        largest = min(tile[0], len(hidden)), min(tile[1], len(weight))
        self._logits, self._place = (temperature.new_empty(largest) for _ in range(2))

    def rows(self) -> Iterator[slice]:
        return _cuts(len(self.scaled), self._tile[0])

    def columns(self) -> Iterator[slice]:
        return _cuts(len(self._weight), self._tile[1])

    def weight(self, columns: slice) -> Float[Tensor, "columns width"]:
        return self._weight[columns].to(self.scaled.dtype)

    def place(self, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """Memory that is used for one tile after the other."""
        return self._place[: rows.stop - rows.start, : columns.stop - columns.start]

    def logits(self, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """The logits of a tile, in memory that the next call uses again."""
        logits = self._logits[: rows.stop - rows.start, : columns.stop - columns.start]
        factors = self.scaled[rows], self.weight(columns).T
        if logits.dtype == self.scaled.dtype:
            torch.mm(*factors, out=logits)
        else:
            logits.copy_(torch.mm(*factors))
        if self._bias is not None:
            logits.addr_(1 / self.temperature[rows], self._bias[columns].to(logits.dtype))
        return logits


class _Gradients:
    """Gradients of the hidden states (times temperature), and of weight and bias if they are trained, in the making."""

    def __init__(self, head: _Head, weight: Tensor, bias: Tensor | None, of_weight: bool, of_bias: bool) -> None:
        self._head, self._full_weight, self._full_bias = head, weight, bias
        kind = head.temperature.dtype
        self._scaled = torch.zeros_like(head.scaled, dtype=kind)
        self._weight = torch.zeros_like(weight, dtype=kind) if of_weight else None
        self._bias = torch.zeros_like(bias, dtype=kind) if of_bias and bias is not None else None

    def add(self, rows: slice, columns: slice, of_logits: Float[Tensor, "rows columns"], factor: Float[Tensor, " rows"]) -> None:
        """A tile's share, from the derivative by its logits less a factor of each row."""
        head = self._head
        if self._bias is not None:
            self._bias[columns] += (factor / head.temperature[rows]) @ of_logits
        of_logits = of_logits.to(head.scaled.dtype)
        self._scaled[rows].addcmul_((of_logits @ head.weight(columns)).to(factor.dtype), factor[:, None])
        if self._weight is None:
            return
        scaled = (head.scaled[rows] * factor[:, None]).to(head.scaled.dtype)
        if self._weight.dtype == scaled.dtype:
            self._weight[columns].addmm_(of_logits.T, scaled)
        else:
            self._weight[columns] += of_logits.T @ scaled

    def add_targets(self, targets: Int[Tensor, " tokens"], of_logprob: Float[Tensor, " tokens"]) -> None:
        """What the logits of the targets themselves get."""
        self._scaled += of_logprob[:, None] * self._full_weight[targets]
        if self._weight is not None:
            self._weight.index_add_(0, targets, of_logprob[:, None] * self._head.scaled)
        if self._bias is not None:
            self._bias.index_add_(0, targets, of_logprob / self._head.temperature)

    def results(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        of_hidden = self._scaled.div_(self._head.temperature[:, None]).to(hidden.dtype)
        of_bias = None if self._full_bias is None or self._bias is None else self._bias.to(self._full_bias.dtype)
        return of_hidden, None if self._weight is None else self._weight.to(self._full_weight.dtype), of_bias


def _cuts(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
