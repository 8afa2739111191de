"""How the replayed share is divided, by hand and by its properties."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError
from pipeline.config.shape import ReplayConfig
from pipeline.shape.mix import shares
from pipeline.shape.mix.shares import check_replay, divided, groups_of_each, sources_of
from pipeline.store import Artifact

Make = Callable[..., Artifact]


def test_the_examples_hold() -> None:
    assert doctest.testmod(shares) == (0, 3)


@pytest.mark.parametrize(
    ("share", "fresh", "available", "expected"),
    [
        (None, 10, [7, 3], [7, 3]),
        (0.5, 10, [100, 100], [5, 5]),
        (0.4, 12, [100], [8]),  # 8 of 20
        (0.4, 12, [100, 100], [4, 4]),
        (0.4, 12, [3, 100], [3, 5]),
        (0.4, 12, [3, 2], [3, 2]),  # all there are
        (0.5, 5, [100, 100], [3, 2]),
        (0.5, 0, [100], [0]),
        (0.01, 10, [100], [0]),
        (0.5, 10, [0, 100], [0, 10]),
    ],
)
def test_groups_by_share(share: float | None, fresh: int, available: list[int], expected: list[int]) -> None:
    replay = ReplayConfig(iterations=len(available), share=share)
    assert groups_of_each(replay, fresh, [1.0] * len(available), available) == expected


@pytest.mark.parametrize(
    ("total", "weights", "available", "expected"),
    [
        (7, [4.0, 2.0, 1.0], [9, 9, 9], [4, 2, 1]),
        (7, [4.0, 2.0, 1.0], [2, 9, 9], [2, 3, 2]),  # 5 left at 2 : 1, 3.33 and 1.67
        (7, [4.0, 2.0, 1.0], [2, 1, 9], [2, 1, 4]),
        (100, [1.0, 1.0], [3, 4], [3, 4]),
        (1, [1.0, 1.0, 1.0], [9, 9, 9], [1, 0, 0]),
        (3, [], [], []),
        (3, [1.0], [0], [0]),
    ],
)
def test_divided_by_hand(total: int, weights: list[float], available: list[int], expected: list[int]) -> None:
    assert divided(total, weights, available) == expected


sources = st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 50)), max_size=6)


@given(total=st.integers(0, 200), sources=sources)
def test_all_is_given_that_can_be_and_nothing_beyond_what_is_there(total: int, sources: list[tuple[float, int]]) -> None:
    weights, available = [weight for weight, _ in sources], [there for _, there in sources]
    given = divided(total, weights, available)
    assert sum(given) == min(total, sum(available))
    assert all(0 <= one <= there for one, there in zip(given, available, strict=True))


@given(total=st.integers(0, 200), weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_where_enough_is_there_no_source_is_off_its_quota_by_one(total: int, weights: list[float]) -> None:
    given = divided(total, weights, [10**6] * len(weights))
    assert all(abs(one - total * weight / sum(weights)) < 1 + 1e-6 for one, weight in zip(given, weights, strict=True))


def test_the_window_is_the_newest_iterations_and_weights_decay_with_age(make_artifact: Make) -> None:
    fresh, *earlier = (make_artifact("rollouts", iteration=number) for number in (5, 4, 3, 2))
    found = sources_of(ReplayConfig(iterations=2, share=0.4, decay=0.5), fresh, earlier)
    assert [(source.rollouts.id, source.weight) for source in found] == [(earlier[0].id, 1.0), (earlier[1].id, 0.5)]
    distant = sources_of(ReplayConfig(iterations=3, share=0.4, decay=1e-200), fresh, earlier)
    assert divided(3, [source.weight for source in distant[2:]], [5]) == [3]
    assert sources_of(ReplayConfig(iterations=2), fresh, []) == []
    assert sources_of(ReplayConfig(), fresh, earlier) == []


def test_named_rollouts_come_after_the_runs_own_and_none_comes_twice(make_artifact: Make) -> None:
    fresh, earlier, other = (make_artifact("rollouts", name=name) for name in "abc")
    named = [{"path": str(artifact.path), "weight": 3.0} for artifact in (other, earlier, fresh)]
    replay = ReplayConfig.model_validate({"iterations": 1, "share": 0.4, "artifacts": named})
    found = sources_of(replay, fresh, [earlier])
    assert [(source.rollouts.id, source.weight) for source in found] == [(earlier.id, 1.0), (other.id, 3.0)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"iterations": 1, "decay": 0.5}, "set share"),
        ({"artifacts": [{"path": "a", "weight": 2}]}, "set share"),
        ({"share": 0.5}, "nothing is replayed"),
        ({"loss_weight": 0.5}, "nothing is replayed"),
        ({"iterations": 1, "share": 1.0}, "less than 1"),
        ({"iterations": 1, "share": 0.5, "decay": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ReplayConfig.model_validate(settings)


def test_a_place_without_rollouts_is_refused(make_artifact: Make, tmp_path: Path) -> None:
    for path, said in ((tmp_path, "not a finished artifact"), (make_artifact("checkpoint").path, "a checkpoint artifact")):
        with pytest.raises(UserError, match=rf"replay\.artifacts: {path}: {said}"):
            check_replay(ReplayConfig.model_validate({"artifacts": [{"path": str(path)}]}), resolve("reinforce"))


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_rollouts_without_a_usable_ratio_are_refused_where_one_is_needed(make_artifact: Make, sampling: dict[str, Any]) -> None:
    path = make_artifact("rollouts", sampling={"temperature": 1.0, **sampling}).path
    replay = ReplayConfig.model_validate({"artifacts": [{"path": str(path)}]})
    with pytest.raises(UserError, match=r"grpo needs the ratio pi/mu, and these rollouts were drawn greedily or with top_p"):
        check_replay(replay, resolve("grpo"))
    check_replay(replay, resolve("reinforce"))


def test_pairs_have_no_weights(make_artifact: Make) -> None:
    with pytest.raises(UserError, match=r"replay\.loss_weight: dpo compares pairs"):
        check_replay(ReplayConfig(iterations=1, loss_weight=0.5), resolve("dpo"))
