"""Tokens and the rows of hidden states that they follow: what a tree of prefixes is to the vocabulary projection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Following:
    """The tokens that follow some rows of hidden states, each distinct one of a row an edge."""

    targets: Int[Tensor, " edges"]
    row: Int[Tensor, " edges"]
    """Which row each edge follows, in rising order."""
    starts: NDArray[np.int64]
    """Where the edges of each row start, and how many there are."""
    edge: Int[Tensor, " tokens"]
    """Which edge each token is."""

    @classmethod
    def one_each(cls, targets: Int[Tensor, " rows"]) -> Following:
        """One token for every row."""
        numbers = torch.arange(len(targets), device=targets.device)
        return cls(targets, numbers, np.arange(len(targets) + 1), numbers)

    def of_tokens(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """What each token has, from values of edges and of rows, some rows after the other."""
        of_edges, of_rows = (torch.cat(column) for column in zip(*pairs, strict=True))
        return of_edges[self.edge], of_rows[self.row[self.edge]]

    def of(self, rows: slice) -> Edges:
        edges = slice(int(self.starts[rows.start]), int(self.starts[rows.stop]))
        single = edges.stop - edges.start == rows.stop - rows.start
        return Edges(edges, self.row[edges] - rows.start, self.targets[edges], single)


@dataclass(frozen=True)
class Edges:
    """Edges of some rows."""

    places: slice
    row: Int[Tensor, " edges"]
    """Counted from the first of these rows."""
    targets: Int[Tensor, " edges"]
    single: bool
    """Whether there are as many as rows: every row has at least one."""

    def within(self, columns: slice) -> tuple[Int[Tensor, " edges"], Bool[Tensor, " edges"]]:
        """Columns of a tile, and whether the targets really lie there."""
        here = self.targets - columns.start
        return here.clamp(0, columns.stop - columns.start - 1), (here >= 0) & (here < columns.stop - columns.start)

    def summed(self, values: Float[Tensor, " edges"], rows: int) -> Float[Tensor, " rows"]:
        return values if self.single else values.new_zeros(rows).index_add(0, self.row, values)
