"""Rows as tensors, checked against a layout written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.train.attention import dense_mask
from pipeline.train.batch import Batch, collate
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.tree import PackedRow

CPU = torch.device("cpu")


def completion(group: str, sample: int, tokens: list[int], mask: list[bool], temperature: float = 1.0) -> TrainingCompletion:
    return TrainingCompletion(
        group_id=group,
        sample_index=sample,
        tokens=np.array(tokens, np.int32),
        behavior=np.array([-0.1 * token for token in tokens], np.float32),
        mask=np.array(mask),
        advantage=1.0 + sample,
        weight=0.5 * sample,
        reward=0.0,
        temperature=temperature,
        policy_version=sample,
    )


@pytest.fixture
def batch() -> Batch:
    """[1 2 | 3 4 | 5] and [6 | 7], the second row padded by three. 8, 9 and 2, the last tokens, are left out."""
    first = TrainingGroup(
        np.array([1, 2], np.int32),
        [completion("g", 0, [3, 4, 8], [True, False, False], 0.5), completion("g", 1, [5, 9], [True, False])],
    )
    second = TrainingGroup(np.array([6], np.int32), [completion("h", 2, [7, 2], [True, False])])
    return collate([PackedRow.of(first, first.completions), PackedRow.of(second, second.completions)], CPU)


def test_a_completion_goes_on_from_the_end_of_its_prompt(batch: Batch) -> None:
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]


def test_a_token_sees_its_prompt_and_its_own_completion(batch: Batch) -> None:
    assert dense_mask(batch.end).shape == (2, 1, 5, 5)
    assert dense_mask(batch.end)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_padding_sees_itself_only_and_nothing_sees_it(batch: Batch) -> None:
    assert dense_mask(batch.end)[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_first_tokens_are_predicted_from_the_end_of_the_prompt(batch: Batch) -> None:
    assert batch.flat.targets.tolist() == [3, 4, 8, 5, 9, 7, 2]
    assert batch.predicted_from.tolist() == [1, 2, 3, 1, 4, 5, 6]


def test_what_is_known_of_tokens_and_completions_keeps_their_order(batch: Batch) -> None:
    tokens = batch.flat.tokens(torch.zeros(7), torch.zeros(7), version=5)
    assert tokens.behavior is not None and tokens.age is not None and tokens.group is not None
    assert tokens.behavior.tolist() == pytest.approx([-0.3, -0.4, -0.8, -0.5, -0.9, -0.7, -0.2])
    assert tokens.mask.tolist() == [True, False, False, True, False, True, False]
    assert tokens.sequence.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert tokens.advantage.tolist() == [1, 2, 3]
    assert tokens.weight.tolist() == [0, 0.5, 1]
    assert tokens.lengths.tolist() == [1, 1, 1]
    assert tokens.group.tolist() == [0, 0, 1]
    assert tokens.age.tolist() == [5, 4, 3]
    assert [completion.sample_index for completion in batch.flat.completions] == [0, 1, 2]
    assert batch.flat.temperature.tolist() == [0.5] * 3 + [1.0] * 4


def test_logprobs_that_a_snapshot_lacks_are_none(batch: Batch) -> None:
    tokens = batch.flat.tokens(torch.zeros(7), torch.zeros(7), version=1)
    assert tokens.reference is None
    assert tokens.proximal is None


def test_rows_of_one_group_do_not_see_each_other(make_group: Callable[..., TrainingGroup]) -> None:
    group = make_group(3, [2, 4])
    both = collate([PackedRow.of(group, [one]) for one in group.completions], CPU)
    for place, one in enumerate(group.completions):
        alone = collate([PackedRow.of(group, [one])], CPU)
        size = alone.input_ids.shape[1]
        assert size == 3 + len(one.tokens) - 1
        assert torch.equal(dense_mask(both.end)[place, 0, :size, :size], dense_mask(alone.end)[0, 0])
        assert torch.equal(both.input_ids[place, :size], alone.input_ids[0])
