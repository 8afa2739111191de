"""Logprobs, entropies and losses of chosen tokens without ever holding all logits.

The vocabulary projection runs tile by tile, a tile being some positions by some of the vocabulary, and everything is done
to a tile while it lies in the cache. With logits l = h W^T / T of one position, running over the tiles:

    m = max l so far,   z = sum e^(l - m),   e = sum e^(l - m) (l - m)
    log Z = m + log z,   logprob = l[target] - m - log z,   entropy = log z - e / z
    d logprob / d l = 1[target] - p,   d entropy / d l = - p (log p + entropy),   p = e^(l - log Z)

A row of hidden states stands for a prefix, and several tokens may follow it: each distinct one is an edge of its row. Tokens of
different completions that are the same edge have one logprob, whose derivative g is the sum of theirs. With G = sum g over the
edges of a row, d loss / d l = g - G p at an edge's token, and - G p elsewhere.

A loss is computed chunk by chunk, a chunk being some whole completions: forward, loss and backward pass of one, then of the
next. A row's forward pass runs with the first chunk that has it, its backward pass after the last. The e^(l - m) of what only
one chunk has are kept for its backward pass, as many as fit into a fixed amount of memory; beyond that, and where several chunks
have a row, logits are computed again. So peak memory does not grow with vocabulary x length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.train.following import Edges, Following
from pipeline.train.head import Gradients, Head, tokens_of_chunk


def linear_logprobs(
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    following: Following,
    temperature: Float[Tensor, " rows"],
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log p(token) and the entropy of softmax((hidden W^T + bias) / temperature), in fp32 (fp64 for fp64 input), of every token.

    Without gradients. Products are in the type of `hidden`.
    """
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = Head(hidden, weight, bias, temperature)
        found = [_statistics(head, rows, following.of(rows), None)[:2] for rows in head.rows(slice(0, len(hidden)))]
        empty = head.temperature.new_empty(0)
        return following.of_tokens([(empty, empty), *found])


class RowsOfChunk(Protocol):
    """A chunk, as the projection sees it."""

    @property
    def tokens(self) -> slice: ...
    @property
    def opens(self) -> Sequence[slice]:
        """Runs of rows that it is the first to have."""

    @property
    def closes(self) -> Sequence[slice]:
        """Runs of rows, as they were opened, that it is the last to have."""


class Projection:
    """The vocabulary projection of a micro-batch's hidden states, and the gradient that its losses have.

        projection = Projection(hidden.detach(), weight, bias, following, temperature, longest)
        for chunk in chunks:
            logprobs, entropy = projection(chunk)
            loss(logprobs, entropy).backward()
        projection.backward(hidden)

    Gradients are gathered here in fp32 (fp64 for fp64 input), while a chunk's logits are at hand; autograd would add them up
    in the type of the weights. Products are in the type of `hidden`.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "rows width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, " vocabulary"] | None,
        following: Following,
        temperature: Float[Tensor, " rows"],
        longest: int,
    ) -> None:
        """
        Args:
            longest: most rows that one chunk opens and closes.
        """
        self._hidden, self._following = hidden.detach().requires_grad_(), following
        self._parameters = weight, bias
        self._chunk: RowsOfChunk | None = None
        self._open: dict[int, _RowsPass] = {}
        room = min(longest, tokens_of_chunk(len(weight), hidden.device)) * len(weight)
        with torch.no_grad():
            self._gradients = Gradients(Head(hidden, weight, bias, temperature), weight, bias)
            kind = self._gradients.head.temperature
            self._room = kind.new_empty(room)
            edges, rows = (len(following.targets),), (len(hidden),)
            self._logprobs, self._by_logprobs = kind.new_zeros(edges), kind.new_zeros(edges)
            self._entropy, self._by_entropy = kind.new_zeros(rows), kind.new_zeros(rows)

    def __call__(self, chunk: RowsOfChunk) -> tuple[Float[Tensor, " chunk"], Float[Tensor, " chunk"]]:
        """Logprobs and entropies of a chunk's tokens, as `linear_logprobs` gives them, with a gradient.

        The backward pass of one chunk must run before the next one is asked for: they use the same memory. It runs once.
        """
        found: tuple[Tensor, Tensor] = _ChunkOutputs.apply(self, chunk, self._hidden)  # type: ignore[no-untyped-call]
        return found

    def begin(self, chunk: RowsOfChunk) -> tuple[Tensor, Tensor]:
        """Forward pass of a chunk."""
        self._chunk = chunk
        for rows in chunk.opens:
            kept = self._room if rows in chunk.closes else self._room[:0]
            self._open[rows.start] = found = _RowsPass(self._gradients.head, rows, self._following, kept)
            self._logprobs[found.edges.places], self._entropy[rows] = found.logprobs, found.entropy
        edge = self._following.edge[chunk.tokens]
        return self._logprobs[edge], self._entropy[self._following.row[edge]]

    def end(
        self, chunk: RowsOfChunk | None, of_logprobs: Float[Tensor, " chunk"] | None, of_entropy: Float[Tensor, " chunk"] | None
    ) -> None:
        """Backward pass of the chunk that was begun last."""
        assert chunk is not None and chunk is self._chunk, "a chunk's backward pass runs once, and before the next chunk is begun"
        self._chunk = None
        edge = self._following.edge[chunk.tokens]
        if of_logprobs is not None:
            self._by_logprobs.index_add_(0, edge, of_logprobs)
        if of_entropy is not None:
            self._by_entropy.index_add_(0, self._following.row[edge], of_entropy)
        self._close(chunk.closes)

    def _close(self, runs: Sequence[slice]) -> None:
        for rows in runs:
            if found := self._open.pop(rows.start, None):
                found.backward(self._gradients, self._by_logprobs[found.edges.places], self._by_entropy[rows])

    def backward(self, hidden: Float[Tensor, "tokens width"]) -> None:
        """Carry on what the chunks gave: to the weight and the bias, if they are trained, and back through the model.

        Args:
            hidden: what this was made from, with the model's graph.
        """
        end: Tensor = HandOver.apply(self._taken(), hidden, *self._parameters)  # type: ignore[no-untyped-call]
        torch.autograd.backward(end)

    def _taken(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients; nothing is left here, so that their memory and that of logits is free for the model's backward pass."""
        self._close([passed.rows for passed in self._open.values()])  # a last chunk without a loss to learn from closes none
        found = self._gradients.results(self._hidden)
        del self._gradients, self._room, self._open, self._hidden
        return found


class _ChunkOutputs(torch.autograd.Function):
    """Logprobs and entropies of a chunk. What their gradients give is gathered by the projection, so autograd sees none of it."""

    @staticmethod
    def forward(ctx: Any, projection: Projection, chunk: RowsOfChunk, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.projection, ctx.chunk = projection, chunk
        return projection.begin(chunk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_outputs: Tensor | None) -> tuple[None, None, None]:
        chunk, ctx.chunk = ctx.chunk, None
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


class _RowsPass:
    """Forward and backward pass of some rows that lie together."""

    def __init__(self, head: Head, rows: slice, following: Following, room: Tensor) -> None:
        """
        Args:
            room: memory for exponentials that are kept.
        """
        self.rows, self.edges, self._head = rows, following.of(rows), head
        self._blocks = [
            (
                part,
                following.of(part),
                _Kept(head, part, rows, room) if (part.stop - rows.start) * head.entries <= len(room) else None,
            )
            for part in head.rows(rows)
        ]
        empty = head.temperature.new_empty(0)
        found = [_statistics(head, part, edges, kept) for part, edges, kept in self._blocks]
        self.logprobs, self.entropy, self._normalizer = (
            torch.cat(column) for column in zip((empty, empty, empty), *found, strict=True)
        )

    def backward(self, of: Gradients, by_logprobs: Float[Tensor, " edges"], by_entropy: Float[Tensor, " rows"]) -> None:
        """Add the gradients that the derivatives by the edges' logprobs and the rows' entropies give."""
        for part, edges, kept in self._blocks:
            here = slice(part.start - self.rows.start, part.stop - self.rows.start)
            there = slice(edges.places.start - self.edges.places.start, edges.places.stop - self.edges.places.start)
            by_edges, of_entropy = by_logprobs[there], by_entropy[here]
            of_rows = edges.summed(by_edges, part.stop - part.start)
            given = self._head, of, part, edges, self._normalizer[here]
            counts = bool(of_entropy.any())
            if counts:
                _through_both(*given, self.entropy[here], of_rows, of_entropy, kept)
            elif by_edges.any():
                _through_logprobs(*given, of_rows, kept)
            else:
                continue
            logprobs = self.logprobs[there]
            of_targets = _of_targets(edges, logprobs, by_edges, of_rows)
            if counts:
                entropy, of_each = (values[here][edges.row] for values in (self.entropy, by_entropy))
                of_targets -= of_each * logprobs.exp() * (logprobs + entropy)
            of.add_targets(part, edges, of_targets)


def _of_targets(edges: Edges, logprobs: Tensor, by_edges: Tensor, of_rows: Tensor) -> Tensor:
    """g (1 - p) - (G - g) p of each edge.

    Each is made by itself, and never in the type of the weights: 1 - p of a confident token would be lost there.
    """
    found = -by_edges * logprobs.expm1()
    if edges.single:
        return found
    others = edges.summed(by_edges.double(), len(of_rows))[edges.row] - by_edges
    return found - (others * logprobs.exp()).to(found.dtype)


class _Kept:
    """e^(l - m) of some positions, tile by tile, and the m of each tile."""

    def __init__(self, head: Head, rows: slice, chunk: slice, room: Tensor) -> None:
        count, first = rows.stop - rows.start, (rows.start - chunk.start) * head.entries
        self._tiles = [
            room[first + count * columns.start : first + count * columns.stop].view(count, -1) for columns in head.columns()
        ]
        self.maxima: list[Float[Tensor, " rows"]] = []

    def tile(self, number: int) -> Float[Tensor, "rows columns"]:
        return self._tiles[number]


def _statistics(head: Head, rows: slice, edges: Edges, kept: _Kept | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs of some rows' edges, and entropies and log-normalizers of the rows."""
    maximum = total = weighted = chosen = head.temperature[rows]
    for number, columns in enumerate(head.columns()):
        first = number == 0
        logits = head.logits(rows, columns)
        highest = logits.amax(-1) if first else torch.maximum(maximum, logits.amax(-1))
        logits.sub_(highest[:, None])
        p = torch.exp(logits, out=head.place(rows, columns) if kept is None else kept.tile(number))
        place, inside = edges.within(columns)
        target = logits[edges.row, place]
        if first:
            chosen, total, weighted = target, p.sum(-1), logits.mul_(p).sum(-1)
        else:
            sunk = maximum - highest
            chosen = torch.where(inside, target, chosen + sunk[edges.row])
            weighted = (weighted + total * sunk) * sunk.exp() + logits.mul_(p).sum(-1)
            total = total * sunk.exp() + p.sum(-1)
        maximum = highest
        if kept is not None:
            kept.maxima.append(highest)
    log_total = total.log()
    return chosen - log_total[edges.row], log_total - weighted / total, maximum + log_total


def _through_logprobs(
    head: Head, of: Gradients, rows: slice, edges: Edges, normalizer: Tensor, of_logprobs: Tensor, kept: _Kept | None
) -> None:
    """d loss / d l = - of_logprobs p, but for the edges' own."""
    for number, columns in enumerate(head.columns()):
        if kept is None:
            p, factor = head.logits(rows, columns).sub_(normalizer[:, None]).exp_(), -of_logprobs
        else:
            p, factor = kept.tile(number), -of_logprobs * (kept.maxima[number] - normalizer).exp_()
        of.add(rows, columns, _without_targets(p, columns, edges), factor)


def _through_both(
    head: Head,
    of: Gradients,
    rows: slice,
    edges: Edges,
    normalizer: Tensor,
    entropy: Tensor,
    of_logprobs: Tensor,
    of_entropy: Tensor,
    kept: _Kept | None,
) -> None:
    """d loss / d l = - of_logprobs p - of_entropy p (log p + entropy), but for the edges' own."""
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
        factor.mul_(of_entropy[:, None]).add_(of_logprobs[:, None])
        of.add(rows, columns, _without_targets(factor.mul_(p), columns, edges), -scale)


def _without_targets(tile: Tensor, columns: slice, edges: Edges) -> Float[Tensor, "rows columns"]:
    """A tile with 0 where the edges of a row are."""
    place, inside = edges.within(columns)
    if edges.single:
        return tile.scatter_(-1, place[:, None], tile.gather(-1, place[:, None]).where(~inside[:, None], 0.0))
    # Edges that lie elsewhere must not write: several may come to the same place.
    there = tile[edges.row, place].where(inside, 0.0)
    return tile.index_put_((edges.row, place), -there, accumulate=True)
