"""The vocabulary projection and its gradients, a tile at a time: some positions by some of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.train.following import Edges

TILES = {"cpu": (1024, 4096), "cuda": (4096, 16384)}
"""Positions and vocabulary entries of a tile: 16 MiB of fp32 logits fit a CPU's cache; a GPU wants large products."""
KEPT_LOGITS = {"cpu": 1 << 27, "cuda": 1 << 28}
"""Logits whose exponentials are kept for the backward pass: 0.5 and 1 GiB in fp32."""


def tokens_of_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens whose exponentials can be kept."""
    return KEPT_LOGITS[_kind(device)] // vocabulary


class Head:
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


class Gradients:
    """Gradients of the hidden states (times temperature), and of weight and bias if they are trained, in the making."""

    def __init__(self, head: Head, weight: Tensor, bias: Tensor | None) -> None:
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

    def add_targets(self, rows: slice, edges: Edges, of_logits: Float[Tensor, " edges"]) -> None:
        """The edges' share, from the derivative by their logits."""
        share, targets = of_logits[:, None] * self._full_weight[edges.targets], edges.targets
        scaled, temperature = self.head.scaled[rows], self.head.temperature[rows]
        if edges.single:
            self._scaled[rows] += share
        else:
            self._scaled[rows].index_add_(0, edges.row, share.to(self._scaled.dtype))
            scaled, temperature = scaled[edges.row], temperature[edges.row]
        if self._weight is not None:
            self._weight.index_add_(0, targets, of_logits[:, None] * scaled)
        if self._bias is not None:
            self._bias.index_add_(0, targets, of_logits / temperature)

    def results(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        of_hidden = self._scaled.div_(self.head.temperature[:, None]).to(hidden.dtype)
        of_bias = None if self._full_bias is None or self._bias is None else self._bias.to(self._full_bias.dtype)
        return of_hidden, None if self._weight is None else self._weight.to(self._full_weight.dtype), of_bias


def _kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "cuda"


def _cuts(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _cut_out(memory: Tensor, rows: slice, columns: slice) -> Tensor:
    """The first elements as a tile."""
    count, width = rows.stop - rows.start, columns.stop - columns.start
    return memory[: count * width].view(count, width)
