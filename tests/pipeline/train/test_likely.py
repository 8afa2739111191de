"""How likely preferred and rejected completions are under the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.train.likely import PairLikelihood, likelihood_of_pairs
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup


class Snapshot:
    """Groups as a snapshot has them."""

    def __init__(self, *groups: TrainingGroup) -> None:
        self._groups, self.groups = groups, [str(number) for number in range(len(groups))]

    def __getitem__(self, number: int) -> TrainingGroup:
        return self._groups[number]


def completion(index: int, reference: list[float] | None, mask: list[bool] | None = None) -> TrainingCompletion:
    tokens = np.arange(len(reference or [0]), dtype=np.int32)
    columns: dict[str, Any] = {"mask": np.array(mask or [True] * len(tokens)), "behavior": None}
    given = None if reference is None else np.array(reference, np.float32)
    return TrainingCompletion(group_id="g", sample_index=index, tokens=tokens, reference=given, **columns)


def snapshot(*pairs: tuple[int, int, float], **changes: Any) -> Any:
    """Three completions: -2 and -4 a token, -1 a token and a tool's token that does not count, and -0.5."""
    members = [completion(0, [-2.0, -4.0]), completion(1, [-1.0, -9.0], [True, False]), completion(2, [-0.5])]
    return Snapshot(TrainingGroup(np.array([1], np.int32), changes.get("members", members), list(pairs)))


def test_means_are_over_pairs_of_means_over_tokens() -> None:
    assert likelihood_of_pairs(snapshot((0, 1, 1.0), (0, 2, 0.9), (2, 1, 0.5))) == PairLikelihood(-3.0, -0.75)  # no tie counts


def test_without_pairs_or_a_reference_there_is_nothing_to_tell() -> None:
    assert likelihood_of_pairs(snapshot()) is None
    assert likelihood_of_pairs(snapshot((0, 1, 1.0), members=[completion(0, None), completion(1, None)])) is None


@pytest.mark.parametrize(("chosen", "warned"), [(-3.0, True), (-1.3, True), (-1.2, False), (-0.1, False)])
def test_preferred_completions_that_the_reference_hardly_knows_are_told(chosen: float, warned: bool) -> None:
    warning = PairLikelihood(chosen, -0.75).warning
    assert bool(warning) is warned
    assert warning is None or "make that checkpoint the reference" in warning
