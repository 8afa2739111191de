"""The `shape` settings that hold for every algorithm: by hand, and what they refuse."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from pipeline.algorithms import ALGORITHMS, resolve
from pipeline.algorithms.cells.advantages import Constant
from pipeline.common.errors import UserError
from pipeline.config.shape import ShapeConfig
from pipeline.shape.choices import KEPT, finished, shape_rows, shaped_table
from pipeline.shape.classes import class_rule, draws_of
from pipeline.shape.settings import check_shape

TOPR = "topr"
"""Its advantage is +1 or -1, whatever the rest of the group."""


def frame(groups: dict[str, list[float]], **columns: Any) -> pl.DataFrame:
    """Rows of groups with these rewards, all graded and 3 tokens long."""
    rows = [(group, sample, float(reward)) for group, all in groups.items() for sample, reward in enumerate(all)]
    found = pl.DataFrame(rows, schema={"group_id": pl.String, "sample_index": pl.Int32, "reward": pl.Float64}, orient="row")
    constant = {"status": pl.lit("ok"), "tokens": pl.lit(3, pl.UInt32), "drawn": pl.lit(3), "max_tokens": pl.lit(10)}
    return found.with_columns(**{**constant, **columns})


def shaped(
    groups: dict[str, list[float]], algorithm: str = "reinforce", seed: int = 0, oldest: int | None = None, **choices: Any
) -> pl.DataFrame:
    return shaped_rows(frame(groups), algorithm, seed, oldest, **choices)


def shaped_rows(
    rows: pl.DataFrame, algorithm: str = "reinforce", seed: int = 0, oldest: int | None = None, **choices: Any
) -> pl.DataFrame:
    chosen, cells = ShapeConfig(**choices), resolve(algorithm)
    check_shape(chosen, cells)
    found = finished(shape_rows(rows, chosen, cells, seed, oldest), cells)
    return shaped_table(found, cells, class_rule(chosen, draws_of(found.filter(KEPT))))


def fates(groups: dict[str, list[float]], **choices: Any) -> list[float | str]:
    """Each row's advantage if it is kept, or else why it was dropped."""
    rows = shaped(groups, **choices).iter_rows(named=True)
    return [round(row["advantage"], 6) if row["keep"] else row["drop_reason"] for row in rows]


def test_groups_outside_the_band_of_pass_rates_are_dropped() -> None:
    groups = {"easy": [1, 1, 1, 1], "fit": [1, 0, 0, 0], "hard": [0, 0, 0, 0]}
    assert fates(groups, pass_rate=[0.25, 0.75]) == ["pass_rate"] * 4 + [0.75, -0.25, -0.25, -0.25] + ["pass_rate"] * 4
    assert fates(groups, pass_rate=[0, 0.75])[8:] == [0.0] * 4
    assert fates(groups, pass_rate=[0.25, 1])[:4] == [0.0] * 4


def test_the_pass_rate_is_over_completions_that_can_be_used() -> None:
    rows = frame({"g": [1, 0, 0, 0]}, status=pl.Series(["ok", "ok", "engine_error", "truncated"]))
    assert shaped_rows(rows, pass_rate=[0.3, 0.4])["drop_reason"].to_list() == [None, None, "engine_error", None]
    assert shaped_rows(rows, pass_rate=[0.1, 0.3])["drop_reason"].to_list() == [
        "pass_rate", "pass_rate", "engine_error", "pass_rate",
    ]  # fmt: skip


def test_what_counts_as_solved_is_a_setting() -> None:
    assert fates({"g": [0.6, 0.4]}, pass_rate=[0.5, 0.5], solved_at=0.5) == [0.1, -0.1]
    assert fates({"g": [0.6, 0.4]}, pass_rate=[0.5, 0.5]) == ["pass_rate"] * 2


def test_anna_karenina_keeps_the_first_solution_and_every_mistake() -> None:
    assert fates({"g": [0, 1, 0, 1, 1]}, algorithm=TOPR, anna_karenina=True) == [
        -1, 1, -1, "repeated_solution", "repeated_solution",
    ]  # fmt: skip
    # The baseline is that of the completions that are kept: mean 1/3.
    assert fates({"g": [0, 1, 0, 1, 1]}, anna_karenina=True)[:3] == pytest.approx([-1 / 3, 2 / 3, -1 / 3], abs=1e-6)


def test_solved_is_judged_by_the_grade_and_not_by_what_an_algorithm_makes_of_it() -> None:
    # DAPO takes half a point off 9 tokens of 10; the completions are solved all the same.
    rows = frame({"g": [1, 1, 0]}, tokens=pl.lit(9, pl.UInt32))
    assert shaped_rows(rows, "dapo", pass_rate=[0.6, 0.7])["keep"].to_list() == [True] * 3
    assert shaped_rows(rows, "dapo", anna_karenina=True)["drop_reason"].to_list() == [None, "repeated_solution", None]


def test_whole_groups_are_judged_before_an_algorithm_leaves_completions_out() -> None:
    # RAFT keeps solved completions alone: judged after that, every group would be all right.
    groups = {"mixed": [1, 0], "solved": [1, 1]}
    assert fates(groups, algorithm="raft", zero_variance="drop") == [1.0, "not_solved", "zero_variance", "zero_variance"]
    assert fates(groups, algorithm="raft", pass_rate=[0.5, 0.5]) == [1.0, "not_solved", "pass_rate", "pass_rate"]


def test_completions_of_old_policies_are_dropped_before_the_statistics_of_their_group() -> None:
    rows = frame({"g": [1, 0, 1]}, policy_version=pl.Series([3, 4, 5]))
    table = shaped_rows(rows, oldest=4)
    assert table["drop_reason"].to_list() == ["age", None, None]
    assert table["advantage"].to_list() == [0.0, -0.5, 0.5]


def test_negatives_are_balanced_within_each_group() -> None:
    groups = {"g": [1, 0, 0, 0], "h": [1, 1, 1, 0], "none": [0, 0]}
    table = shaped(groups, class_balance="drop_negatives")
    reasons = table.group_by("group_id", maintain_order=True).agg(pl.col("drop_reason").drop_nulls())["drop_reason"].to_list()
    assert reasons == [["surplus_negative"] * 2, [], []]
    assert sorted(table.filter("keep", group_id="g")["advantage"].to_list()) == [-0.5, 0.5]


def test_either_class_is_balanced_within_each_group() -> None:
    groups = {"g": [1, 0, 0, 0], "h": [1, 1, 1, 0], "all": [1, 1], "none": [0, 0]}
    table = shaped(groups, class_balance="drop_surplus")
    reasons = table.group_by("group_id", maintain_order=True).agg(pl.col("drop_reason").drop_nulls())["drop_reason"].to_list()
    assert reasons == [["surplus_negative"] * 2, ["surplus_positive"] * 2, [], []]


def test_class_weights_follow_the_sign_of_the_advantage() -> None:
    table = shaped({"g": [1, 0, 0.5]}, positive_weight=0.1, negative_weight=2)
    assert table["weight"].to_list() == pytest.approx([0.1, 2.0, 1.0])


@pytest.mark.parametrize(("positives", "baseline", "share"), [(1, 0.0, 0.1), (1, -0.8, 0.5), (5, 0.6, 0.2), (3, 0.5, 0.125)])
def test_a_share_of_positives_weighs_as_a_baseline_does(positives: int, baseline: float, share: float) -> None:
    # TOPR: on rewards of +1 and -1 a baseline c makes an effective share of p (1 - c) / (1 + c (1 - 2 p)).
    rewards = [1.0] * positives + [0.0] * (10 - positives)
    by_baseline = [abs(reward - baseline) for reward in (1.0, -1.0)]
    table = shaped({"g": rewards}, TOPR, positive_fraction=share)
    weights = table["weight"][0], table["weight"][-1]
    assert weights[0] / weights[1] == pytest.approx(by_baseline[0] / by_baseline[1])
    assert table["weight"].mean() == pytest.approx(1.0)
    assert table.filter(pl.col("advantage") > 0)["weight"].sum() / 10 == pytest.approx(share)


def test_a_share_of_positives_is_over_all_groups_and_leaves_out_those_without_an_advantage() -> None:
    # Among completions with an advantage 1 of 4 is positive; the group with equal rewards does not count.
    table = shaped({"g": [1, 0, 0, 0], "dead": [1, 1]}, positive_fraction=0.5)
    assert table["weight"].to_list() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.5, (2, 2)), (0.25, (2, 6)), (0.2, (2, 8)), (0.1, (1, 8)), (0.4, (2, 3)), (0.9, (2, 1)), (0.001, (1, 8))],
)
def test_a_share_of_positives_by_leaving_out_the_larger_class(share: float, kept: tuple[int, int]) -> None:
    table = shaped({"g": [1, 0, 0, 0, 0], "h": [1, 0, 0, 0, 0]}, TOPR, positive_fraction=share, positive_fraction_by="drop")
    positive, negative = (table.filter(keep=True, advantage=value) for value in (1.0, -1.0))
    assert (len(positive), len(negative)) == kept
    reasons = set(table["drop_reason"].drop_nulls())
    assert reasons == ({"surplus_negative"} if kept[1] < 8 else {"surplus_positive"} if kept[0] < 2 else set())
    assert set(table.filter("keep")["weight"]) == {1.0}
    assert table.filter(~pl.col("keep")).select((pl.col("advantage") != 0).any() | (pl.col("weight") != 0).any()).item() is False


def test_what_is_left_out_for_the_share_stays_in_its_groups_statistics() -> None:
    table = shaped({"g": [1, 0, 0, 0]}, positive_fraction=0.5, positive_fraction_by="drop")
    assert sorted(table.filter("keep")["advantage"].to_list()) == [-0.25, 0.75]


def test_a_share_that_one_class_alone_cannot_reach_changes_nothing() -> None:
    for by in ("weight", "drop"):
        table = shaped({"g": [0, 0, 0]}, TOPR, positive_fraction=0.5, positive_fraction_by=by)
        assert (table["keep"].all(), table["weight"].to_list()) == (True, [1.0] * 3)


def test_draws_differ_by_seed_and_are_the_same_for_the_same_seed() -> None:
    groups = {name: [1.0] + [0.0] * 7 for name in "abcd"}
    for choices in ({"class_balance": "drop_surplus"}, {"positive_fraction": 0.5, "positive_fraction_by": "drop"}):
        kept = [shaped(groups, seed=seed, **choices)["keep"].to_list() for seed in (1, 1, 2, 3)]
        assert kept[0] == kept[1]
        assert len({str(one) for one in kept}) == 3


@st.composite
def some_choices(draw: st.DrawFn) -> dict[str, Any]:
    choices: dict[str, Any] = {
        "pass_rate": draw(st.sampled_from([None, (0.2, 0.8)])),
        "zero_variance": draw(st.sampled_from(["keep", "drop"])),
        "anna_karenina": draw(st.booleans()),
        "class_balance": draw(st.sampled_from(["keep", "drop_negatives", "drop_surplus"])),
        "positive_weight": draw(st.sampled_from([1.0, 0.1])),
        "positive_fraction": draw(st.sampled_from([None, 0.3, 0.6])),
        "positive_fraction_by": draw(st.sampled_from(["weight", "drop"])),
    }
    try:
        ShapeConfig(**choices)
    except ValidationError:
        return {}
    return choices


groups = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6), min_size=1
)


@settings(deadline=None, max_examples=80)
@given(groups=groups, choices=some_choices(), data=st.data(), name=st.sampled_from(["reinforce", "grpo", "topr", "dapo"]))
def test_the_order_of_rows_does_not_matter(groups: dict[str, list[float]], choices: dict[str, Any], data: Any, name: str) -> None:
    rows = frame(groups)
    order = data.draw(st.permutations(range(len(rows))))
    tables = [shaped_rows(these, name, **choices).sort("group_id", "sample_index") for these in (rows, rows[order])]
    assert_frame_equal(*tables, rel_tol=1e-6)
    assert (tables[0]["keep"] == tables[0]["drop_reason"].is_null()).all()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"pass_rate": [0.9, 0.1]}, "no band"),
        ({"pass_rate": [0.1, 1.1]}, "no band"),
        ({"pass_rate": [0.1]}, "Field required"),
        ({"positive_weight": 0, "negative_weight": 0}, "nothing would be learned"),
        ({"positive_weight": 2, "positive_fraction": 0.5}, "leave out positive_weight and negative_weight"),
        ({"class_balance": "drop_surplus", "positive_fraction": 0.5}, "set one of them"),
        ({"class_balance": "drop_surplus", "anna_karenina": True}, "set one of them"),
        ({"positive_fraction": 1.0}, "less than 1"),
        ({"max_age": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ShapeConfig(**choices)


WEIGHTS = {"positive_weight": 0.5}
SHARE = {"positive_fraction": 0.5}
SHARE_BY_DROP = {**SHARE, "positive_fraction_by": "drop"}
BALANCE = {"class_balance": "drop_negatives"}
ANNA = {"anna_karenina": True}
REFUSED = [
    ("red-weight", WEIGHTS, r"shape\.positive_weight and negative_weight: red-weight weighs completions itself \(Exponential"),
    ("red-weight", SHARE, r"or set positive_fraction_by: drop"),
    ("w-reinforce", WEIGHTS, r"Set `positive` and `negative` in train\.algorithm_args"),
    ("w-reinforce", SHARE, r"or set positive_fraction_by: drop"),
    ("kto", WEIGHTS, r"Set `desirable` and `undesirable`"),
    ("dpo", WEIGHTS, r"compares pairs and has no weights"),
    ("dpo", SHARE_BY_DROP, r"compares pairs, in which the classes are equal"),
    ("sft", WEIGHTS, r"no classes to weigh"),
    ("raft", SHARE, r"no classes to weigh"),
    ("raft", SHARE_BY_DROP, r"no classes to balance"),
    ("raft++", BALANCE, r"no classes to balance"),
    ("best-of-n", BALANCE, r"no classes to balance"),
    ("best-of-n", ANNA, r"keeps one completion of each group itself"),
    ("red-drop", BALANCE, r"shape\.class_balance: red-drop decides itself how many completions of each class stay"),
    ("red-drop", SHARE_BY_DROP, r"shape\.positive_fraction: red-drop decides itself"),
    ("red-drop", ANNA, r"shape\.anna_karenina: red-drop decides itself"),
]


@pytest.mark.parametrize(("name", "choices", "said"), REFUSED, ids=[f"{name} {choices}" for name, choices, _ in REFUSED])
def test_what_an_algorithm_decides_itself_is_refused_as_a_setting(name: str, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_shape(ShapeConfig(**choices), resolve(name))


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("raft", ANNA),
        ("raft", {"pass_rate": [0.1, 0.9]}),
        ("kto", SHARE_BY_DROP),
        ("red-weight", SHARE_BY_DROP),
        ("red-weight", BALANCE),
        ("dapo", {"zero_variance": "drop"}),
        ("dpo", {**ANNA, "pass_rate": [0.1, 0.9]}),
        ("topr", {**ANNA, **SHARE}),
        ("oapl", WEIGHTS),
    ],
)
def test_what_composes_is_allowed(name: str, choices: dict[str, Any]) -> None:
    check_shape(ShapeConfig(**choices), resolve(name))


def test_what_counts_as_solved_must_be_the_same_everywhere() -> None:
    with pytest.raises(
        UserError, match=r"shape\.solved_at: topr counts rewards from 0\.5 as solved \(advantage\.solved_at\), not from 1"
    ):
        check_shape(ShapeConfig(anna_karenina=True), resolve("topr", {"solved_at": 0.5}))
    check_shape(ShapeConfig(anna_karenina=True, solved_at=0.5), resolve("topr", {"solved_at": 0.5}))
    check_shape(ShapeConfig(), resolve("topr", {"solved_at": 0.5}))
    with pytest.raises(UserError, match=r"\(filters\.0\.solved_at\)"):
        check_shape(ShapeConfig(pass_rate=(0, 0.5)), resolve("raft", {"solved_at": 0.5}))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_defaults_suit_every_algorithm(name: str) -> None:
    check_shape(ShapeConfig(), resolve(name))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_setting_is_refused_or_changes_what_the_algorithm_learns_from(name: str) -> None:
    # Unequal classes in every group, so that no setting can be without effect by chance.
    algorithm = resolve(name)
    if type(algorithm.advantage) is Constant or algorithm.advantage.whole_snapshot or algorithm.shaping_needs:
        return  # one class alone, or numbers that a file does not have
    groups = {"g": [1, 0, 0, 0, 0], "h": [1, 1, 0, 0, 0, 0]}
    before = shaped(groups, name)
    for choices in (WEIGHTS, SHARE, SHARE_BY_DROP, BALANCE):
        try:
            check_shape(ShapeConfig(**choices), algorithm)
        except UserError:
            continue
        assert not shaped(groups, name, **choices).equals(before), (name, choices)
