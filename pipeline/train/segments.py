"""Attention of trees of tokens on a CPU, at the cost of what is really seen.

A segment is positions between two forks of a tree. Every position sees its segment up to itself, and all of the segments above.
Depth first, what lies below a segment follows it, up to where its subtree ends. So what is seen is, for every segment, a triangle
of its own and a rectangle: all that lies below by the segment. Both are plain flash attention, one causal and one without any
mask, and are put together by their log-sums l of exponentiated scores:

    out = (e^(l_own) own + e^(l_above) above) / (e^(l_own) + e^(l_above)),    l = log(e^(l_own) + e^(l_above))

The backward pass of flash attention needs only `out`, `l` and the gradient of `out`, so each part's own backward pass with
those of the whole gives its share of the exact gradient. Against a dense mask this leaves out everything nobody sees: with a
prompt of 1,024 tokens and 8 completions of 160 it is 2.0M pairs of positions instead of 5.3M. Small subtrees, where a call costs
more than the pairs it spares, are one part with a mask of their own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

NAME = "packed_segments"
"""What transformers calls this attention, once `register` was called."""
PADDED_LENGTHS = sorted(quarters * 2**power for power in range(2, 24) for quarters in (4, 5, 6, 7))
"""Parts up to one of these lengths, and longer than the one before, are computed in one call."""
SMALL = 128
"""Positions of a subtree that is one part with a mask. At this length a call for it takes as long as some three small ones."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
Places = NDArray[np.int64]
HeadRows = Float[Tensor, "tokens heads width"]


@dataclass(frozen=True)
class Segment:
    """Positions that lie together, of the flattened rows."""

    start: int
    length: int

    @property
    def places(self) -> slice:
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class Parts:
    """Segments, or small subtrees, of like length, which are computed together."""

    places: Int[Tensor, "parts length"]
    """The positions of each, filled up with its first one."""
    lengths: Int[Tensor, " parts"]
    mask: Float[Tensor, "parts 1 length length"] | None
    """Of subtrees: 0 where a position sees another, else -inf. What is filled up sees itself."""


@dataclass(frozen=True)
class SegmentPlan:
    """What is computed together."""

    own: list[Parts]
    order: Int[Tensor, " tokens"]
    """Where each position stands in the flattened `own`."""
    cross: list[tuple[Segment, Segment]]
    """What lies below a segment, and the segment."""


def register() -> None:
    """Let transformers' models use this attention: pass `table(...)` as their attention mask.

    Without such a mask it is the causal attention that sdpa gives.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # Its plan differs from batch to batch: compiled, it would be compiled again for each.
    AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # type: ignore[no-untyped-call]
    AttentionMaskInterface.register(NAME, sdpa_mask)


def table(end: Int[Tensor, "rows length"]) -> Int[Tensor, "rows 1 1 length"]:
    """Who sees whom as a mask that models hand on to their attention as it is, since it has four dimensions.

    Args:
        end: where in its row each position's subtree ends.
    """
    return end[:, None, None]


def attention(query: Tensor, key: Tensor, value: Tensor, layout: Int[Tensor, "rows 1 1 length"], scale: float) -> Tensor:
    """Attention of rows of trees.

    Args:
        query: [rows, heads, length, width]; key and value may have fewer heads, each shared by as many of the query's.
        layout: from `table`.

    Returns:
        [rows, length, heads, width], as transformers wants it.
    """
    rows, heads, length, width = query.shape
    flat = (tensor.transpose(1, 2).reshape(rows * length, -1, width) for tensor in (query, key, value))
    out: Tensor = _Segments.apply(*flat, plan_of(layout, query.dtype), scale)  # type: ignore[no-untyped-call]
    return out.view(rows, length, heads, width)


@lru_cache(maxsize=2)
def plan_of(layout: Int[Tensor, "rows 1 1 length"], kind: torch.dtype = torch.float32) -> SegmentPlan:
    """The plan of a micro-batch; every layer asks for it with the same tensor.

    Args:
        kind: of masks. Flash attention takes one of its inputs' type, and gives wrong sums without a word for another.
    """
    rows, _, _, length = layout.shape
    end = (layout[:, 0, 0] + length * torch.arange(rows)[:, None]).flatten().numpy()
    before = np.concatenate([[-1], end[:-1]])
    starts = np.flatnonzero((end != before) | (np.arange(len(end)) >= before))  # else the only child of the one before
    parts: list[tuple[Segment, bool]] = []
    cross: list[tuple[Segment, Segment]] = []
    done = 0
    for start, stop in itertools.pairwise([*starts.tolist(), len(end)]):
        if start < done:
            continue
        last = int(end[start])
        if stop < last <= start + SMALL:
            done = last
            parts.append((Segment(start, last - start), True))
            continue
        segment = Segment(start, stop - start)
        parts.append((segment, False))
        if stop < last:
            cross.append((Segment(stop, last - stop), segment))
    own, order = _by_length(parts, end, kind)
    return SegmentPlan(own, order, cross)


def _by_length(parts: list[tuple[Segment, bool]], end: Places, kind: torch.dtype) -> tuple[list[Parts], Tensor]:
    """`own` and `order` of a plan."""
    found = []
    order = np.zeros(len(end), np.int64)
    done = 0
    classes = 2 * np.searchsorted(PADDED_LENGTHS, [part.length for part, _ in parts]) + [forks for _, forks in parts]
    for number in np.unique(classes):
        members = [parts[index][0] for index in np.flatnonzero(classes == number)]
        longest = max(part.length for part in members)
        places: Places = np.empty((len(members), longest), np.int64)
        for index, part in enumerate(members):
            places[index] = part.start
            places[index, : part.length] += np.arange(part.length)
            order[part.places] = done + index * longest + np.arange(part.length)
        done += places.size
        lengths = np.array([part.length for part in members])
        mask = _mask(places, lengths, end).to(kind) if number % 2 else None
        found.append(Parts(torch.from_numpy(places), torch.from_numpy(lengths), mask))
    return found, torch.from_numpy(order)


def _mask(places: Places, lengths: Places, end: Places) -> Float[Tensor, "parts 1 length length"]:
    numbers = np.arange(places.shape[1])
    until = np.where(numbers < lengths[:, None], end[places] - places[:, :1], numbers + 1)
    sees = (numbers <= numbers[:, None]) & (numbers[:, None] < until[:, None, :])
    return torch.zeros(sees.shape).masked_fill(torch.from_numpy(~sees), -torch.inf)[:, None]


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: HeadRows, key: HeadRows, value: HeadRows, plan: SegmentPlan, scale: float) -> HeadRows:
        parts = []
        for part in plan.own:
            q, k, v = (_gathered(tensor, part.places) for tensor in (query, key, value))
            parts.append(_attend(q, k, v, 0.0, part.mask is None, attn_mask=part.mask, scale=scale))
        out = torch.cat([_as_rows(one) for one, _ in parts]).index_select(0, plan.order)
        log_sum = torch.cat([_as_rows(one[..., None]) for _, one in parts]).index_select(0, plan.order)
        for below, above in plan.cross:
            q, k, v = _cross(query, below), _cross(key, above), _cross(value, above)
            of_above, sum_above = _attend(q, k, v, 0.0, False, scale=scale)
            here, sums = out[below.places], log_sum[below.places]
            sum_above = _as_rows(sum_above[..., None])
            here.lerp_(_as_rows(of_above), torch.sigmoid(sum_above - sums).to(out.dtype))
            sums.copy_(torch.logaddexp(sums, sum_above))
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        tensors = (gradients[0].contiguous(), query, key, value, out)
        parts = []
        for part in plan.own:
            # A log-sum of infinity makes every weight of a filled-up position 0, and with it all that it gives.
            filled = torch.arange(part.places.shape[1]) >= part.lengths[:, None]
            sums = _gathered(log_sum, part.places)[..., 0].masked_fill(filled[:, None], torch.inf).contiguous()
            given = (_gathered(tensor, part.places) for tensor in tensors)
            parts.append(_attend_backward(*given, sums, 0.0, part.mask is None, attn_mask=part.mask, scale=scale))
        of = [torch.cat([_as_rows(one) for one in column]).index_select(0, plan.order) for column in zip(*parts, strict=True)]
        for below, above in plan.cross:
            spread = [_cross(tensor, where) for tensor, where in zip(tensors, (below, below, above, above, below), strict=True)]
            sums = _cross(log_sum, below)[..., 0].contiguous()
            shares = _attend_backward(*spread, sums, 0.0, False, scale=scale)
            for total, share, where in zip(of, shares, (below, above, above), strict=True):
                total[where.places] += _as_rows(share)
        return *of, None, None


def _gathered(rows: Float[Tensor, "tokens heads width"], places: Int[Tensor, "segments length"]) -> Tensor:
    """[segments, heads, length, width]"""
    if len(places) == 1:
        start, length = int(places[0, 0]), places.shape[1]
        return _cross(rows, Segment(start, length))
    return rows.index_select(0, places.flatten()).view(*places.shape, *rows.shape[1:]).transpose(1, 2)


def _cross(rows: Float[Tensor, "tokens heads width"], segment: Segment) -> Tensor:
    """[1, heads, length, width]"""
    return rows[segment.places].transpose(0, 1)[None]


def _as_rows(batch: Float[Tensor, "segments heads length width"]) -> HeadRows:
    return batch.transpose(1, 2).flatten(0, 1)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """What transformers calls."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int64:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given
        )
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, attention_mask, scale), None
