"""Who sees whom in packed rows, and the attention that computes it.

    segments  flash attention within every segment of a tree, and from all that lies below it to the segment: what a CPU
              trains with. Rows are laid out in one line without padding, and pairs that nobody sees cost nothing.
    flex      flex_attention with a block-sparse mask, in one line too: what a GPU trains with. On a CPU it has no backward
              pass.
    sdpa      a dense mask, rows x length x length. Forward and backward everywhere; the way out where the others fail.
    alone     no mask of ours: every completion in a row of its own, by the model's own mask and attention. For models that
              know more than who sees whom: recurrent layers, windows, positions that change with length, capped scores.

The first three read one rule from one tensor: a position sees those before it whose subtree has not ended yet. The self-check
at start compares what comes out with the model alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.train import segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Kind = Literal["sdpa", "segments", "flex", "alone"]
Wanted = Literal["auto", "sdpa", "segments", "flex", "alone"]
Own = Literal["sdpa", "eager"]
"""What rows of one completion run on. sdpa is not every model's own attention: it leaves caps and sinks out, and says nothing."""
IMPLEMENTATIONS: dict[Kind, str] = {"sdpa": "sdpa", "segments": segments.NAME, "flex": "flex_attention"}
"""Names in transformers of those that read a mask of ours."""
BLOCK = 128
"""Side of flex_attention's blocks. Lines are padded to whole blocks, so that few shapes are compiled."""


def choose(wanted: Wanted, device: torch.device) -> Kind:
    """The attention to try.

    Raises:
        UserError: one that cannot train on this device.
    """
    if wanted == "flex" and device.type == "cpu":
        raise UserError("train.attention=flex: flex_attention has no backward pass on a CPU; use auto, segments or sdpa")
    if wanted == "segments" and device.type != "cpu":
        raise UserError("train.attention=segments is for CPUs; use auto, flex or sdpa")
    if wanted == "auto":
        return "segments" if device.type == "cpu" else "flex"
    return wanted


def dense_mask(end: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows 1 length length"]:
    """Position q sees position k <= q while q < end[k], where in depth-first order the subtree of k ends."""
    place = torch.arange(end.shape[1], device=end.device)
    return ((place <= place[:, None]) & (place[:, None] < end[:, None, :]))[:, None]


def block_mask(end: Int[Tensor, "rows length"]) -> BlockMask:
    """The rule of `dense_mask`, block by block."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[row, key])

    rows, length = end.shape
    return create_block_mask(sees, rows, None, length, length, end.device, BLOCK, _compile=end.device.type != "cpu")
