"""Attention of packed groups on a CPU, at the cost of what is really seen.

A packed row is cut into segments: a prompt, or a completion. Every position sees its segment up to itself; a completion's
positions also see the whole prompt. Both parts are plain flash attention, one causal and one without any mask, and are put
together by their log-sums l of exponentiated scores:

    out = (e^(l_own) own + e^(l_prompt) prompt) / (e^(l_own) + e^(l_prompt)),    l = log(e^(l_own) + e^(l_prompt))

The backward pass of flash attention needs only `out`, `l` and the gradient of `out`, so each part's own backward pass with
those of the whole gives its share of the exact gradient. Against a dense mask this leaves out everything nobody sees: with a
prompt of 1,024 tokens and 8 completions of 160 it is 2.0M pairs of positions instead of 5.3M.
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
"""Segments up to one of these lengths, and longer than the one before, are computed in one call."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
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
class SegmentPlan:
    """What is computed together."""

    own: list[tuple[Int[Tensor, "segments length"], Int[Tensor, " segments"]]]
    """Segments of like length: the positions of each, filled up with its first one, and how many there are."""
    order: Int[Tensor, " tokens"]
    """Where each position stands in the flattened `own`."""
    cross: list[tuple[Segment, Segment]]
    """Completions of a row, which lie together, and their prompt."""


def register() -> None:
    """Let transformers' models use this attention: pass `table(...)` as their attention mask.

    Without such a mask it is the causal attention that sdpa gives.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # Its plan differs from batch to batch: compiled, it would be compiled again for each.
    AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # type: ignore[no-untyped-call]
    AttentionMaskInterface.register(NAME, sdpa_mask)


def table(part: Int[Tensor, "rows length"], prompt: Int[Tensor, "rows length"]) -> Int[Tensor, "rows 2 1 length"]:
    """Who sees whom as a mask that models hand on to their attention as it is, since it has four dimensions.

    Args:
        part: number of each position's segment within its row, -1 for padding.
        prompt: number of the prompt that it may see beside its own segment.
    """
    return torch.stack((part, prompt), 1)[:, :, None]


def attention(query: Tensor, key: Tensor, value: Tensor, layout: Int[Tensor, "rows 2 1 length"], scale: float) -> Tensor:
    """Attention of packed rows.

    Args:
        query: [rows, heads, length, width]; key and value may have fewer heads, each shared by as many of the query's.
        layout: from `table`.

    Returns:
        [rows, length, heads, width], as transformers wants it.
    """
    rows, heads, length, width = query.shape
    flat = (tensor.transpose(1, 2).reshape(rows * length, -1, width) for tensor in (query, key, value))
    out: Tensor = _Segments.apply(*flat, plan_of(layout), scale)  # type: ignore[no-untyped-call]
    return out.view(rows, length, heads, width)


@lru_cache(maxsize=2)
def plan_of(layout: Int[Tensor, "rows 2 1 length"]) -> SegmentPlan:
    """The plan of a micro-batch; every layer asks for it with the same tensor."""
    length = layout.shape[-1]
    part, prompt = layout[:, :, 0].transpose(0, 1).reshape(2, -1).numpy()
    row = np.arange(len(part)) // length
    starts = np.flatnonzero(np.diff(part, prepend=-2) | np.diff(row, prepend=-1))
    segments = [Segment(start, end - start) for start, end in itertools.pairwise([*starts.tolist(), len(part)])]
    number = {(int(row[s.start]), int(part[s.start])): s for s in segments}
    cross: list[tuple[Segment, Segment]] = []
    for segment in segments:
        home, own, seen = int(row[segment.start]), int(part[segment.start]), int(prompt[segment.start])
        if own < 0 or own == seen or (home, seen) not in number:
            continue
        seen_by, before = cross[-1] if cross else (None, None)
        if seen_by and before is number[home, seen] and seen_by.start + seen_by.length == segment.start:
            cross[-1] = Segment(seen_by.start, seen_by.length + segment.length), before
        else:
            cross.append((segment, number[home, seen]))
    own_parts, order = _by_length(segments, len(part))
    return SegmentPlan(own_parts, order, cross)


def _by_length(segments: list[Segment], tokens: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """`own` and `order` of a plan."""
    parts = []
    order = np.zeros(tokens, np.int64)
    done = 0
    classes = np.searchsorted(PADDED_LENGTHS, [segment.length for segment in segments])
    for kind in np.unique(classes):
        members = [segments[index] for index in np.flatnonzero(classes == kind)]
        longest = max(segment.length for segment in members)
        places: NDArray[np.int64] = np.empty((len(members), longest), np.int64)
        for index, segment in enumerate(members):
            places[index] = segment.start
            places[index, : segment.length] += np.arange(segment.length)
            order[segment.places] = done + index * longest + np.arange(segment.length)
        done += places.size
        parts.append((torch.from_numpy(places), torch.tensor([segment.length for segment in members])))
    return parts, torch.from_numpy(order)


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: HeadRows, key: HeadRows, value: HeadRows, plan: SegmentPlan, scale: float) -> HeadRows:
        parts = []
        for places, _ in plan.own:
            q, k, v = (_gathered(tensor, places) for tensor in (query, key, value))
            parts.append(_attend(q, k, v, 0.0, True, scale=scale))
        out = torch.cat([_as_rows(part) for part, _ in parts]).index_select(0, plan.order)
        log_sum = torch.cat([_as_rows(part[..., None]) for _, part in parts]).index_select(0, plan.order)
        for asking, prompt in plan.cross:
            q, k, v = _cross(query, asking), _cross(key, prompt), _cross(value, prompt)
            part, part_sum = _attend(q, k, v, 0.0, False, scale=scale)
            here, sums = out[asking.places], log_sum[asking.places]
            part_sum = _as_rows(part_sum[..., None])
            here.lerp_(_as_rows(part), torch.sigmoid(part_sum - sums).to(out.dtype))
            sums.copy_(torch.logaddexp(sums, part_sum))
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        tensors = (gradients[0].contiguous(), query, key, value, out)
        parts = []
        for places, lengths in plan.own:
            # A log-sum of infinity makes every weight of a filled-up position 0, and with it all that it gives.
            filled = torch.arange(places.shape[1]) >= lengths[:, None]
            sums = _gathered(log_sum, places)[..., 0].masked_fill(filled[:, None], torch.inf)
            given = (_gathered(tensor, places) for tensor in tensors)
            parts.append(_attend_backward(*given, sums.contiguous(), 0.0, True, scale=scale))
        of = [torch.cat([_as_rows(part) for part in column]).index_select(0, plan.order) for column in zip(*parts, strict=True)]
        for places, prompt in plan.cross:
            spread = [
                _cross(tensor, where) for tensor, where in zip(tensors, (places, places, prompt, prompt, places), strict=True)
            ]
            sums = _cross(log_sum, places)[..., 0].contiguous()
            shares = _attend_backward(*spread, sums, 0.0, False, scale=scale)
            for total, share, where in zip(of, shares, (places, prompt, prompt), strict=True):
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
