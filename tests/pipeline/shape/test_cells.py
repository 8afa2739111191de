"""Filters, reward shaping and weights, each on a few rows (reference: oracles, sections A, B and J; rec, section 3.2)."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.advantages import GroupMean, Signed, SoftValue
from pipeline.algorithms.cells.shaping import (
    AnnaKarenina,
    BalanceNegatives,
    BalancePositives,
    BestOfN,
    ClassWeights,
    ExponentialAdvantage,
    Filter,
    Mixed,
    OnlySolved,
    OverlongPenalty,
    PassRate,
    Uniform,
    Weighting,
    ZeroVariance,
)
from pipeline.config.shape import ShapeConfig
from pipeline.shape.choices import shape_rows, shaped_table

REINFORCE = resolve("reinforce")


def shaped(rewards: list[float], algorithm: Algorithm, tokens: int = 3, limit: int = 10, seed: int = 0) -> pl.DataFrame:
    """One group, shaped."""
    size = len(rewards)
    frame = pl.DataFrame({"group_id": ["g"] * size, "sample_index": range(size), "status": ["ok"] * size})
    frame = frame.with_columns(
        pl.Series("reward", rewards, pl.Float64, strict=False),
        tokens=pl.lit(tokens),
        drawn=pl.lit(tokens),
        max_tokens=pl.lit(limit),
    )
    return shaped_table(shape_rows(frame, ShapeConfig(), algorithm, seed), algorithm)


def kept(cell: Filter, *rewards: float) -> list[int]:
    """Samples of one group that a filter keeps."""
    return shaped(list(rewards), REINFORCE.replace(filters=(cell,))).filter("keep")["sample_index"].to_list()


@pytest.mark.parametrize(
    ("cell", "rewards", "expected"),
    [
        (AnnaKarenina(), [0, 1, 0, 1, 1], [0, 1, 2]),
        (AnnaKarenina(), [0, 0], [0, 1]),
        (AnnaKarenina(), [1, 1, 1], [0]),
        (AnnaKarenina(solved_at=0.5), [0.5, 0.6, 0.4], [0, 2]),
        (BestOfN(), [0.2, 0.9, 0.9, 0.1], [1]),
        (BestOfN(), [0, 0, 0], [0]),
        (OnlySolved(), [1, 0.99, 0, 1], [0, 3]),
        (OnlySolved(solved_at=0.5), [1, 0.5, 0.4], [0, 1]),
        (PassRate(), [0, 0], [0, 1]),
        (PassRate(low=0.25, high=0.75), [1, 0, 0, 0], [0, 1, 2, 3]),
        (PassRate(low=0.25, high=0.75), [1, 1, 1, 0], [0, 1, 2, 3]),
        (PassRate(low=0.3, high=0.7), [1, 0, 0, 0], []),
        (PassRate(low=0.3, high=0.7), [1, 1, 1, 0], []),
        (PassRate(low=1 / 8, high=7 / 8), [1] * 8, []),
        (PassRate(low=0.5, solved_at=0.5), [0.6, 0.4], [0, 1]),
        (Mixed(), [1, 0], [0, 1]),
        (Mixed(), [1, 1], []),
        (Mixed(), [0.2, 0.1], []),
        (Mixed(), [1], []),
        (Mixed(solved_at=0.2), [0.2, 0.1], [0, 1]),
        (ZeroVariance(), [1, 1], []),
        (ZeroVariance(), [1, 0.9], [0, 1]),
        (ZeroVariance(), [0.1 + 0.2, 0.3], []),
    ],
)
def test_what_a_filter_keeps(cell: Filter, rewards: list[float], expected: list[int]) -> None:
    assert kept(cell, *rewards) == expected


def test_a_filter_sees_what_the_one_before_it_kept() -> None:
    rewards = [1.0, 1.0, 0.0, 0.0, 0.0]
    one = shaped(rewards, REINFORCE.replace(filters=(AnnaKarenina(), PassRate(low=0.3))))
    assert one["drop_reason"].to_list() == ["pass_rate", "repeated_solution", "pass_rate", "pass_rate", "pass_rate"]
    other = shaped(rewards, REINFORCE.replace(filters=(PassRate(low=0.3), AnnaKarenina())))
    assert other["drop_reason"].to_list() == [None, "repeated_solution", None, None, None]
    assert other["advantage"].to_list() == [0.75, 0.0, -0.25, -0.25, -0.25]


@pytest.mark.parametrize(
    ("rewards", "advantages", "dropped"),
    [
        ([1, 1, 0, 0, 0, 0, 0, 0], [0.5] * 2 + [-0.5] * 2, 4),
        ([1, 0, 0, 0, 0, 0, 0, 0], [0.5, -0.5], 6),
        ([1] * 8, [0] * 8, 0),
        ([0] * 8, [0] * 8, 0),
        ([1, 1, 1, 0], [0.25] * 3 + [-0.75], 0),
        ([1, 0], [0.5, -0.5], 0),
        ([0.3], [0], 0),
    ],
)
def test_red_drop_by_hand(rewards: list[float], advantages: list[float], dropped: int) -> None:
    for seed in range(3):
        frame = shaped(rewards, resolve("red-drop"), seed=seed)
        assert sorted(frame.filter("keep")["advantage"].to_list(), reverse=True) == pytest.approx(advantages)
        assert frame["drop_reason"].drop_nulls().to_list() == ["surplus_negative"] * dropped
        assert frame.filter(~pl.col("keep"))["advantage"].to_list() == [0] * dropped


def test_positives_of_red_drop_are_those_at_the_mean_or_above() -> None:
    # Mean .4: two positives and three negatives, one of which goes.
    assert len(kept(BalanceNegatives(), 1.0, 0.7, 0.1, 0.1, 0.1)) == 4
    assert kept(BalanceNegatives(), 0.5, 0.5, 0.5) == [0, 1, 2]


@pytest.mark.parametrize(("tokens", "penalty"), [(1, 0.0), (16384, 0.0), (17408, 0.25), (18432, 0.5), (20480, 1.0), (30000, 1.0)])
def test_soft_overlong_punishment_by_hand(tokens: int, penalty: float) -> None:
    dapo = resolve("dapo", {"limit": 20480}).replace(advantage=Signed(positive=0.0), filters=())
    cell = dapo.reward
    assert isinstance(cell, OverlongPenalty)
    frame = pl.DataFrame({"reward": [1.0], "tokens": [tokens], "max_tokens": [7]}, schema_overrides={"tokens": pl.UInt32})
    assert frame.select(cell.shaped(pl.col("reward"))).item() == pytest.approx(1 - penalty)
    by_sampling = dataclasses.replace(cell, limit=0)
    frame = frame.with_columns(max_tokens=pl.lit(20480))
    assert frame.select(by_sampling.shaped(pl.col("reward"))).item() == pytest.approx(1 - penalty)


@pytest.mark.parametrize(
    ("rewards", "stays"), [([1.0, 1.0], False), ([0.0, 0.0], False), ([0.1, 0.0], False), ([1.1, 1.0], False), ([1.1, 0.1], True)]
)
def test_a_group_is_mixed_by_its_grades_before_the_penalty_for_length(rewards: list[float], stays: bool) -> None:
    frame = pl.DataFrame({"group_id": ["g"] * 2, "sample_index": [0, 1], "status": ["ok"] * 2, "reward": rewards})
    frame = frame.with_columns(tokens=pl.Series([3, 10]), drawn=pl.lit(3), max_tokens=pl.lit(10))
    for name in ("dapo", "opg", "reinforce-rej"):
        table = shaped_table(shape_rows(frame, ShapeConfig(), resolve(name), seed=0), resolve(name))
        assert table["drop_reason"].to_list() == [None if stays else "not_mixed"] * 2, name
    dapo = resolve("dapo").replace(advantage=GroupMean())
    if stays:  # 1.1 and 0.1 - 1
        assert shape_rows(frame, ShapeConfig(), dapo, seed=0)["advantage"].to_list() == pytest.approx([1.0, -1.0])


def test_what_counts_as_solved_is_one_setting_of_a_filter_and_an_advantage() -> None:
    opg = resolve("opg", {"solved_at": 0.5})
    assert (opg.filters, opg.advantage) == ((Mixed(solved_at=0.5),), Signed(solved_at=0.5))
    assert shaped([0.6, 0.4], opg)["advantage"].to_list() == [1.0, -1.0]
    assert resolve("opg", {"advantage.solved_at": 0.5}).filters == (Mixed(),)


@pytest.mark.parametrize("cell", [BalanceNegatives(), BalancePositives()])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 1.1])
def test_rounding_makes_no_negatives_of_equal_rewards(cell: Filter, reward: float) -> None:
    for size in range(1, 33):
        assert kept(cell, *[reward] * size) == list(range(size))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Uniform(), [1, 1, 1]),
        (ClassWeights(positive=0.1, negative=2.0), [0.1, 2.0, 2.0]),
        (ClassWeights(positive=0.0), [0, 1, 1]),
        (ExponentialAdvantage(), [2.117, 0.7788, 0.7788]),
        (ExponentialAdvantage(temperature=0.5), [4.4817, 0.6065, 0.6065]),
    ],
)
def test_weights_by_hand(cell: Weighting, expected: list[float]) -> None:
    frame = shaped([1, 0, 0, 0], REINFORCE.replace(weighting=cell))
    assert frame["weight"].to_list()[:3] == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("cell", [ExponentialAdvantage(), ClassWeights(positive=2.0, negative=3.0), Uniform()])
def test_a_dropped_completion_has_no_weight_whatever_the_weighting(cell: Weighting) -> None:
    frame = shaped([1, 1, 0], REINFORCE.replace(filters=(OnlySolved(),), weighting=cell))
    assert frame["weight"].to_list()[2] == 0
    assert min(frame["weight"].to_list()[:2]) > 0


@pytest.mark.parametrize(("rewards", "value"), [([0, 1, 0], 0.4528324), ([1, 1, 0], 0.7633825)])
def test_soft_value_by_hand(rewards: list[float], value: float) -> None:
    # The values of NeMo-RL's tests.
    advantage = shaped(rewards, REINFORCE.replace(advantage=SoftValue(beta=1.0)))["advantage"].to_list()
    assert advantage == pytest.approx([reward - value for reward in rewards], abs=1e-6)


def test_soft_value_lies_between_the_mean_and_the_best() -> None:
    rewards = [1.0, 0.25, 0.0]
    values = [1 - shaped(rewards, REINFORCE.replace(advantage=SoftValue(beta=beta)))["advantage"][0] for beta in (1e-3, 1, 1e5)]
    assert values == pytest.approx([1.0, 0.5113, 1.25 / 3], abs=2e-3)
    assert shaped([0.5, 0.5], REINFORCE.replace(advantage=SoftValue(beta=1e-3)))["advantage"].to_list() == [0, 0]
