"""Who sees whom, by dense mask and by block mask, and flex_attention's forward pass against sdpa."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.train.attention import BLOCK, block_mask, choose, dense_mask
from pipeline.train.batch import Batch, collate
from pipeline.train.check import differences, make_ready
from pipeline.train.family import why_alone
from pipeline.train.model import Policy
from pipeline.train.snapshot import TrainingGroup
from pipeline.train.tree import PackedRow

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MakePolicy = Callable[..., Policy]


@pytest.fixture
def batch(make_group: Callable[..., TrainingGroup]) -> Batch:
    """Rows of 9, 19 and 151 positions, less the last token of each of the two completions."""
    groups = [make_group(5, [3, 1], 0), make_group(7, [4, 8], 1), make_group(1, [100, 50], 2)]
    return collate([PackedRow.of(group, group.completions) for group in groups], CPU)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def as_dense(end: torch.Tensor) -> torch.Tensor:
    """The mask function of the block mask, at every pair of positions."""
    mask = block_mask(end)
    rows, length = end.shape
    places = torch.meshgrid(torch.arange(rows), torch.tensor([0]), torch.arange(length), torch.arange(length), indexing="ij")
    found: torch.Tensor = mask.mask_mod(*places)
    return found


def test_block_and_dense_mask_are_one_rule(batch: Batch) -> None:
    assert torch.equal(as_dense(batch.end), dense_mask(batch.end))


def test_rows_in_a_line_see_what_they_saw_and_nothing_of_each_other(batch: Batch) -> None:
    line = batch.in_line(BLOCK)
    lengths = batch.filled.tolist()
    assert lengths == [7, 17, 149]
    assert line.input_ids.shape == (1, 2 * BLOCK)
    expected = torch.eye(2 * BLOCK, dtype=torch.bool)
    start = 0
    for row, length in enumerate(lengths):
        here = slice(start, start + length)
        expected[here, here] = dense_mask(batch.end)[row, 0, :length, :length]
        assert torch.equal(line.input_ids[0, here], batch.input_ids[row, :length])
        assert torch.equal(line.position_ids[0, here], batch.position_ids[row, :length])
        start += length
    assert torch.equal(dense_mask(line.end)[0, 0], expected)
    assert torch.equal(as_dense(line.end)[0, 0], expected)
    assert torch.equal(line.input_ids.flatten()[line.predicted_from], batch.input_ids.flatten()[batch.predicted_from])


def test_blocks_that_nobody_sees_are_left_out(make_group: Callable[..., TrainingGroup]) -> None:
    group = make_group(BLOCK, [BLOCK + 1] * 6)
    for number, completion in enumerate(group.completions):
        completion.tokens[0] = number
    mask = block_mask(collate([PackedRow.of(group, group.completions)], CPU).end)
    # Of 7 x 7 blocks: the prompt's own, and for each completion its own and the prompt's.
    assert mask.sparsity() == pytest.approx(100 * (1 - 13 / 49))


@pytest.mark.parametrize("name", ["qwen2", "tied"])
def test_flex_attention_gives_the_logprobs_of_sdpa(name: str, batch: Batch, make_policy: MakePolicy, uncompiled: None) -> None:
    policy = make_policy(name, max_position_embeddings=256)
    policy.use_attention("sdpa")
    expected = policy.logprobs(batch)
    policy.use_attention("flex")
    found = policy.logprobs(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert differences(policy, batch).max() < 1e-4


def test_the_attention_follows_from_the_device() -> None:
    assert (choose("auto", CPU), choose("auto", GPU)) == ("segments", "flex")
    assert (choose("sdpa", CPU), choose("sdpa", GPU), choose("flex", GPU)) == ("sdpa", "sdpa", "flex")
    with pytest.raises(UserError, match="flex_attention has no backward pass on a CPU"):
        choose("flex", CPU)
    with pytest.raises(UserError, match="attention=segments is for CPUs"):
        choose("segments", GPU)


def test_an_attention_that_does_not_work_is_replaced_and_named(
    make_group: Callable[..., TrainingGroup], make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch, uncompiled: None
) -> None:
    example = make_group(5, [3])
    policy, notes = make_policy("qwen2", max_position_embeddings=256), list[str]()
    policy.use_attention("flex")
    monkeypatch.setattr("pipeline.train.model.block_mask", lambda end: block_mask(torch.arange(end.shape[1])[None] + 1))
    with pytest.raises(UserError, match=r"packed rows give logprobs that differ by .* \(attention: flex\)"):
        make_ready(policy, example, 60, "flex", notes.append)
    make_ready(policy, example, 60, "auto", notes.append)
    assert policy.attention == "sdpa"
    assert re.fullmatch(r"qwen2: attention flex does not work here \(it is .* nats off\); sdpa is used", notes[0])


def test_sequences_beyond_a_sliding_window_are_not_packed(make_policy: MakePolicy) -> None:
    windowed: Any = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}
    policy = make_policy("qwen2", **windowed)
    assert why_alone(policy.model, longest=8) is None
    assert why_alone(policy.model, longest=9) == (
        "its layers see sliding_window=8 tokens, and the longest prompt and completion have 9"
    )
    assert why_alone(make_policy("qwen2", sliding_window=8).model, longest=1000) is None
