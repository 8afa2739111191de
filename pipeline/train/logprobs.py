"""Logprobs, entropies and losses of chosen tokens without ever holding all logits.

The vocabulary projection runs tile by tile, a tile being some positions by some of the vocabulary, and everything is done
to a tile while it lies in the cache. With logits l = h W^T / T of one position, running over the tiles:

    m = max l so far,   z = sum e^(l - m),   e = sum e^(l - m) (l - m)
    log Z = m + log z,   logprob = l[target] - m - log z,   entropy = log z - e / z
    d logprob / d l = 1[target] - p,   d entropy / d l = - p (log p + entropy),   p = e^(l - log Z)

A loss is computed chunk by chunk, a chunk being some whole completions: forward, loss and backward pass of one, then of the
next. The e^(l - m) of a chunk are kept for its backward pass, as many as fit into a fixed amount of memory; beyond that, which
only one completion alone can be, logits are computed again. So peak memory does not grow with vocabulary x length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

TILES = {"cpu": (1024, 4096), "cuda": (4096, 16384)}
"""Positions and vocabulary entries of a tile: 16 MiB of fp32 logits fit a CPU's cache; a GPU wants large products."""
KEPT_LOGITS = {"cpu": 1 << 27, "cuda": 1 << 28}
"""Logits whose exponentials are kept for the backward pass: 0.5 and 1 GiB in fp32."""


def linear_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " tokens"],
    temperature: Float[Tensor, " tokens"],
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log p(target) and the entropy of softmax((hidden W^T + bias) / temperature), in fp32 (fp64 for fp64 input).

    Without gradients. Products are in the type of `hidden`.
    """
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = _Head(hidden, weight, bias, temperature)
        found = [_statistics(head, rows, targets[rows], None)[:2] for rows in head.rows(slice(0, len(hidden)))]
        empty = head.temperature.new_empty(0)
        logprobs, entropy = zip((empty, empty), *found, strict=True)
        return torch.cat(logprobs), torch.cat(entropy)


class Projection:
    """The vocabulary projection of a micro-batch's hidden states, and the gradient that its losses have.

        projection = Projection(hidden.detach(), weight, bias, targets, temperature, longest)
        for tokens in chunks:
            logprobs, entropy = projection(tokens)
            loss(logprobs, entropy).backward()
        projection.backward(hidden)

    Gradients are gathered here in fp32 (fp64 for fp64 input), while a chunk's logits are at hand; autograd would add them up
    in the type of the weights. Products are in the type of `hidden`.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "tokens width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, " vocabulary"] | None,
        targets: Int[Tensor, " tokens"],
        temperature: Float[Tensor, " tokens"],
        longest: int,
    ) -> None:
        """
        Args:
            longest: tokens of the longest chunk.
        """
        self._hidden, self._targets = hidden.detach().requires_grad_(), targets
        self._parameters = weight, bias
        self._open: _TokensPass | None = None
        room = min(longest, tokens_of_chunk(len(weight), hidden.device)) * len(weight)
        with torch.no_grad():
            self._gradients = _Gradients(_Head(hidden, weight, bias, temperature), weight, bias)
            self._room = self._gradients.head.temperature.new_empty(room)

    def __call__(self, tokens: slice) -> tuple[Float[Tensor, " chunk"], Float[Tensor, " chunk"]]:
        """Logprobs and entropies of a chunk, as `linear_logprobs` gives them, with a gradient.

        The backward pass of one chunk must run before the next one is asked for: they use the same memory. It runs once.
        """
        found: tuple[Tensor, Tensor] = _ChunkOutputs.apply(self, tokens, self._hidden)  # type: ignore[no-untyped-call]
        return found

    def begin(self, tokens: slice) -> _TokensPass:
        """Forward pass of a chunk."""
        head = self._gradients.head
        self._open = _TokensPass(head, tokens, self._targets[tokens], self._room)
        return self._open

    def end(
        self, chunk: _TokensPass | None, of_logprobs: Float[Tensor, " chunk"] | None, of_entropy: Float[Tensor, " chunk"] | None
    ) -> None:
        """Backward pass of the chunk that was begun last."""
        assert chunk is not None and chunk is self._open, "a chunk's backward pass runs once, and before the next chunk is begun"
        chunk.backward(self._gradients, of_logprobs, of_entropy)
        self._open = None

    def backward(self, hidden: Float[Tensor, "tokens width"]) -> None:
        """Carry on what the chunks gave: to the weight and the bias, if they are trained, and back through the model.

        Args:
            hidden: what this was made from, with the model's graph.
        """
        end: Tensor = HandOver.apply(self._taken(), hidden, *self._parameters)  # type: ignore[no-untyped-call]
        torch.autograd.backward(end)

    def _taken(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients; nothing is left here, so that their memory and that of logits is free for the model's backward pass."""
        found = self._gradients.results(self._hidden)
        del self._gradients, self._room, self._open, self._hidden
        return found


def tokens_of_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens whose exponentials can be kept."""
    return KEPT_LOGITS[_kind(device)] // vocabulary


class _ChunkOutputs(torch.autograd.Function):
    """Logprobs and entropies of a chunk. What their gradients give is gathered by the projection, so autograd sees none of it."""

    @staticmethod
    def forward(ctx: Any, projection: Projection, tokens: slice, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.projection, ctx.chunk = projection, projection.begin(tokens)
        return ctx.chunk.logprobs.clone(), ctx.chunk.entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[None, None, None]:
        chunk, ctx.chunk = ctx.chunk, None  # its exponentials are not held beyond this
        ctx.projection.end(chunk, *of_outputs)
        return None, None, None


class HandOver(torch.autograd.Function):
    """Stands for a loss whose gradients are there already. They are held by nobody else, so autograd need not copy them."""

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor | None, ...], hidden: Tensor, *_: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return hidden.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = None
        return None, *gradients


class _TokensPass:
    """Forward and backward pass of some positions that lie together."""

    def __init__(self, head: _Head, tokens: slice, targets: Tensor, room: Tensor) -> None:
        """
        Args:
            room: memory for exponentials that are kept.
        """
        self._head, self._tokens, self._targets = head, tokens, targets
        self._blocks = [
            (rows, _Kept(head, rows, tokens, room) if (rows.stop - tokens.start) * head.entries <= len(room) else None)
            for rows in head.rows(tokens)
        ]
        empty = head.temperature.new_empty(0)
        found = [_statistics(head, rows, targets[_within(rows, tokens)], kept) for rows, kept in self._blocks]
        self.logprobs, self.entropy, self._normalizer = (
            torch.cat(column) for column in zip((empty, empty, empty), *found, strict=True)
        )

    def backward(self, of: _Gradients, by_logprobs: Tensor | None, by_entropy: Tensor | None) -> None:
        """Add the gradients that the derivatives by logprobs and entropies give. None stands for zeros."""
        for rows, kept in self._blocks:
            here = _within(rows, self._tokens)
            of_logprob, of_entropy = (
                None if values is None or not values[here].any() else values[here] for values in (by_logprobs, by_entropy)
            )
            given = self._head, of, rows, self._targets[here], self._normalizer[here]
            if of_entropy is not None:
                _through_both(*given, self.entropy[here], of_logprob, of_entropy, kept)
            elif of_logprob is not None:
                _through_logprobs(*given, of_logprob, kept)
        if (of_targets := self._of_targets(by_logprobs, by_entropy)) is not None:
            of.add_targets(self._tokens, self._targets, of_targets)

    def _of_targets(self, by_logprobs: Tensor | None, by_entropy: Tensor | None) -> Tensor | None:
        """d loss / d l of the targets themselves, as `_through_both` has it.

        Each is made by itself, and never in the type of the weights: 1 - p of a confident token would be lost there.
        """
        found = None if by_logprobs is None else -by_logprobs * self.logprobs.expm1()
        if by_entropy is not None:
            of_entropy = -by_entropy * self.logprobs.exp() * (self.logprobs + self.entropy)
            found = of_entropy if found is None else found + of_entropy
        return found


class _Kept:
    """e^(l - m) of some positions, tile by tile, and the m of each tile."""

    def __init__(self, head: _Head, rows: slice, chunk: slice, room: Tensor) -> None:
        count, first = rows.stop - rows.start, (rows.start - chunk.start) * head.entries
        self._tiles = [
            room[first + count * columns.start : first + count * columns.stop].view(count, -1) for columns in head.columns()
        ]
        self.maxima: list[Float[Tensor, " rows"]] = []

    def tile(self, number: int) -> Float[Tensor, "rows columns"]:
        return self._tiles[number]


def _statistics(head: _Head, rows: slice, targets: Tensor, kept: _Kept | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs, entropies and log-normalizers of some rows."""
    maximum = total = weighted = chosen = head.temperature[rows]
    for number, columns in enumerate(head.columns()):
        first = number == 0
        logits = head.logits(rows, columns)
        highest = logits.amax(-1) if first else torch.maximum(maximum, logits.amax(-1))
        logits.sub_(highest[:, None])
        p = torch.exp(logits, out=head.place(rows, columns) if kept is None else kept.tile(number))
        here = targets - columns.start
        target = logits.gather(-1, here.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        if first:
            chosen, total, weighted = target, p.sum(-1), logits.mul_(p).sum(-1)
        else:
            sunk = maximum - highest
            chosen = torch.where((here >= 0) & (here < logits.shape[1]), target, chosen + sunk)
            weighted = (weighted + total * sunk) * sunk.exp() + logits.mul_(p).sum(-1)
            total = total * sunk.exp() + p.sum(-1)
        maximum = highest
        if kept is not None:
            kept.maxima.append(highest)
    log_total = total.log()
    return chosen - log_total, log_total - weighted / total, maximum + log_total


def _through_logprobs(
    head: _Head, of: _Gradients, rows: slice, targets: Tensor, normalizer: Tensor, of_logprob: Tensor, kept: _Kept | None
) -> None:
    """d loss / d l = of_logprob (1[target] - p), but for the targets' own."""
    for number, columns in enumerate(head.columns()):
        if kept is None:
            p, factor = head.logits(rows, columns).sub_(normalizer[:, None]).exp_(), -of_logprob
        else:
            p, factor = kept.tile(number), -of_logprob * (kept.maxima[number] - normalizer).exp_()
        of.add(rows, columns, _without_targets(p, columns, targets), factor)


def _through_both(
    head: _Head,
    of: _Gradients,
    rows: slice,
    targets: Tensor,
    normalizer: Tensor,
    entropy: Tensor,
    of_logprob: Tensor | None,
    of_entropy: Tensor,
    kept: _Kept | None,
) -> None:
    """d loss / d l = of_logprob (1[target] - p) - of_entropy p (log p + entropy), but for the targets' own."""
    for number, columns in enumerate(head.columns()):
        factor = head.place(rows, columns)
        if kept is None:
            p = head.logits(rows, columns).sub_(normalizer[:, None])
            torch.add(p, entropy[:, None], out=factor)
            p, scale = p.exp_(), torch.ones_like(normalizer)
        else:
            p, log_scale = kept.tile(number), kept.maxima[number] - normalizer
            torch.clamp(p, min=torch.finfo(p.dtype).tiny, out=factor).log_().add_((log_scale + entropy)[:, None])
            scale = log_scale.exp()
        factor.mul_(of_entropy[:, None])
        if of_logprob is not None:
            factor += of_logprob[:, None]
        of.add(rows, columns, _without_targets(factor.mul_(p), columns, targets), -scale)


def _without_targets(tile: Tensor, columns: slice, targets: Int[Tensor, " rows"]) -> Float[Tensor, "rows columns"]:
    """A tile with 0 where the target of a row is."""
    here = targets - columns.start
    place = here.clamp(0, tile.shape[1] - 1)[:, None]
    elsewhere = (here < 0) | (here >= tile.shape[1])
    return tile.scatter_(-1, place, tile.gather(-1, place).where(elsewhere[:, None], 0.0))


class _Head:
    """The vocabulary projection, tile by tile. Dividing hidden states by the temperature spares dividing the logits."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor) -> None:
        self.temperature = temperature.to(torch.promote_types(hidden.dtype, torch.float32))
        self.scaled = (hidden / self.temperature[:, None]).to(hidden.dtype)
        self.entries = len(weight)
        self._weight, self._bias, self._tile = weight, bias, TILES[_kind(hidden.device)]
        self._rows = min(self._tile[0], tokens_of_chunk(self.entries, hidden.device) or self._tile[0])
        largest = min(self._rows, len(hidden)) * min(self._tile[1], len(weight))
        self._logits, self._place = (self.temperature.new_empty(largest) for _ in range(2))

    def rows(self, chunk: slice) -> Iterator[slice]:
        """Positions of a tile, in turn, of those of a chunk; about as many each time, and no more than can be kept."""
        length = chunk.stop - chunk.start
        return _cuts(chunk.start, chunk.stop, -(-length // -(-length // self._rows)) if length else 1)

    def columns(self) -> Iterator[slice]:
        return _cuts(0, self.entries, self._tile[1])

    def weight(self, columns: slice) -> Float[Tensor, "columns width"]:
        return self._weight[columns].to(self.scaled.dtype)

    def place(self, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """Memory that is used for one tile after the other."""
        return _cut_out(self._place, rows, columns)

    def logits(self, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
        """The logits of a tile, in memory that the next call uses again."""
        logits = _cut_out(self._logits, rows, columns)
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

    def __init__(self, head: _Head, weight: Tensor, bias: Tensor | None) -> None:
        self.head, self._full_weight, self._full_bias = head, weight, bias
        kind = head.temperature.dtype
        self._scaled = torch.zeros_like(head.scaled, dtype=kind)
        self._weight = torch.zeros_like(weight, dtype=kind) if weight.requires_grad else None
        self._bias = torch.zeros_like(bias, dtype=kind) if bias is not None and bias.requires_grad else None

    def add(self, rows: slice, columns: slice, of_logits: Float[Tensor, "rows columns"], factor: Float[Tensor, " rows"]) -> None:
        """A tile's share, from the derivative by its logits less a factor of each row."""
        head = self.head
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

    def add_targets(self, rows: slice, targets: Int[Tensor, " rows"], of_logits: Float[Tensor, " rows"]) -> None:
        """The targets' share, from the derivative by their logits."""
        self._scaled[rows] += of_logits[:, None] * self._full_weight[targets]
        if self._weight is not None:
            self._weight.index_add_(0, targets, of_logits[:, None] * self.head.scaled[rows])
        if self._bias is not None:
            self._bias.index_add_(0, targets, of_logits / self.head.temperature[rows])

    def results(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        of_hidden = self._scaled.div_(self.head.temperature[:, None]).to(hidden.dtype)
        of_bias = None if self._full_bias is None or self._bias is None else self._bias.to(self._full_bias.dtype)
        return of_hidden, None if self._weight is None else self._weight.to(self._full_weight.dtype), of_bias


def _kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "cuda"


def _cuts(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _within(rows: slice, chunk: slice) -> slice:
    return slice(rows.start - chunk.start, rows.stop - chunk.start)


def _cut_out(memory: Tensor, rows: slice, columns: slice) -> Tensor:
    """The first elements as a tile."""
    count, width = rows.stop - rows.start, columns.stop - columns.start
    return memory[: count * width].view(count, width)
