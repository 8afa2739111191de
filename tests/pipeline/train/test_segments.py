"""Attention by segments against a dense mask, in fp64, and what it computes together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipeline.train import segments
from pipeline.train.attention import dense_mask
from pipeline.train.batch import Batch, collate
from pipeline.train.model import Policy
from pipeline.train.segments import Segment, attention, plan_of, table
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.tree import PackedRow

CPU = torch.device("cpu")
WIDTH = 4
MakeGroup = Callable[..., TrainingGroup]
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def batch_of(make_group: MakeGroup, groups: list[tuple[int, list[int]]]) -> Batch:
    """A row of each group: its prompt's and its completions' lengths."""
    made = [make_group(prompt, sizes, number) for number, (prompt, sizes) in enumerate(groups)]
    return collate([PackedRow.of(group, group.completions) for group in made], CPU)


def inputs(batch: Batch, heads: int, shared_by: int) -> list[Tensor]:
    """Query, key and value, laid out as projections give them, and a gradient of the result."""
    rows, length = batch.end.shape
    random = torch.Generator().manual_seed(0)
    counts = heads * shared_by, heads, heads, heads * shared_by
    made = [torch.randn(rows, length, count, WIDTH, generator=random, dtype=torch.float64) for count in counts]
    return [*(tensor.transpose(1, 2).requires_grad_() for tensor in made[:3]), made[3]]


def assert_same_as_dense(batch: Batch, heads: int, shared_by: int) -> None:
    query, key, value, gradient = inputs(batch, heads, shared_by)
    mask = dense_mask(batch.end)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.7, enable_gqa=True).transpose(1, 2)
    found = attention(query, key, value, table(batch.end), 0.7)
    real = torch.arange(batch.end.shape[1]) < batch.filled[:, None]
    torch.testing.assert_close(found[real], expected[real], rtol=1e-12, atol=1e-12)
    gradient = gradient * real[:, :, None, None]
    of_found, of_expected = (torch.autograd.grad(out, (query, key, value), gradient) for out in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-11, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    groups=st.lists(st.tuples(st.integers(1, 40), lengths), min_size=1, max_size=4),
    heads=st.integers(1, 2),
    shared=st.integers(1, 3),
)
def test_segments_give_what_a_dense_mask_gives(
    make_group: MakeGroup, groups: list[tuple[int, list[int]]], heads: int, shared: int
) -> None:
    batch = batch_of(make_group, groups)
    assert_same_as_dense(batch, heads, shared)
    assert_same_as_dense(batch.in_line(), heads, shared)


def test_large_scores_neither_overflow_nor_vanish(make_group: MakeGroup) -> None:
    batch = batch_of(make_group, [(3, [4, 2])]).in_line()
    query, key, value, gradient = inputs(batch, 1, 1)
    query, key = (1e3 * tensor.detach() for tensor in (query, key))
    mask = dense_mask(batch.end)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0).transpose(1, 2)
    found = attention(query, key, value, table(batch.end), 1.0)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(out, value, gradient)[0] for out in (found, expected))
    torch.testing.assert_close(of_found, of_expected)


@settings(deadline=None, max_examples=60)
@given(
    completions=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=8),
    prompt=st.integers(1, 20),
    small=st.sampled_from([0, 8, 32, 1000]),
)
def test_trees_of_many_forks_give_what_a_dense_mask_gives(completions: list[list[int]], prompt: int, small: int) -> None:
    made = [
        TrainingCompletion("g", n, np.array(one, np.int32), None, np.ones(len(one), np.bool_))
        for n, one in enumerate(completions)
    ]
    batch = collate([PackedRow.of(TrainingGroup(np.full(prompt, 9, np.int32), made), made)], CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SMALL", small)
        assert_same_as_dense(batch, 2, 2)


def test_parts_of_like_length_are_computed_together(make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to 16 positions count as alike, then 17 to 20, 21 to 24, and so on.
    monkeypatch.setattr(segments, "SMALL", 0)
    batch = batch_of(make_group, [(5, [4, 19]), (17, [17])]).in_line()
    plan = plan_of(table(batch.end))
    found = [(part.places.shape, part.lengths.tolist()) for part in plan.own]
    # The second group is one completion: its prompt goes on into it without a fork.
    assert found == [((2, 5), [5, 3]), ((1, 18), [18]), ((1, 33), [33])]
    assert plan.cross == [(Segment(5, 21), Segment(0, 5))]


def test_what_lies_below_a_fork_looks_up_together_and_small_subtrees_have_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SMALL", 5)
    # 10 positions: 0 1 2, of which 3 4 5 6 7 come (3, then 4 5 or 6 7), and 8 9.
    end = torch.tensor([[10, 10, 10, 8, 6, 6, 8, 8, 10, 10]])
    plan = plan_of(table(end))
    assert plan.cross == [(Segment(3, 7), Segment(0, 3))]
    causal, masked = plan.own
    assert causal.mask is None and causal.places.tolist() == [[0, 1, 2], [8, 9, 8]] and causal.lengths.tolist() == [3, 2]
    assert masked.places.tolist() == [[3, 4, 5, 6, 7]] and masked.mask is not None
    assert masked.mask[0, 0].exp().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "phi"])
def test_models_give_the_same_logprobs_and_gradients_as_with_sdpa(
    name: str, make_group: MakeGroup, make_policy: Callable[..., Policy], add_gradient: Callable[..., Tensor]
) -> None:
    policy = make_policy(name, double=True)
    batch = batch_of(make_group, [(5, [3, 7, 1]), (9, [4]), (1, [2, 2])])
    results = []
    for kind in ("segments", "sdpa"):
        policy.use_attention(kind)  # type: ignore[arg-type]
        policy.model.zero_grad()
        add_gradient(policy, batch, lambda _, logprobs, entropy: (logprobs * entropy).sum())
        results.append((policy.logprobs(batch), [p.grad for p in policy.parameters.values()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)
