"""A judge that compares: both orders of every pair, places that it prefers, scores of whole groups, and what it cannot be."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent
from pipeline.rewards.graders.pairwise_judge import pairwise_judge
from pipeline.rewards.items import RewardItem
from pipeline.rewards.registry import recipe_of, resolve
from tests.pipeline.rewards.conftest import Grade, Server, said

SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "template": "{question}|{first}|{second}",
    "pattern": "Better: (.+)",
    "values": {"A": 1, "B": 0, "C": 0.5},
}


def group(*texts: str, name: str = "p0") -> list[RewardItem]:
    prompt = {"prompt_id": name, "question": "2+2?"}
    return [RewardItem(text, "4", prompt, f"{name}@01234567", number) for number, text in enumerate(texts)]


def asked(server: Server) -> list[tuple[str, ...]]:
    """First and second of each question."""
    return [tuple(body["messages"][-1]["content"].split("|")[1:]) for _, body, _ in server.asked]


def by_length(body: dict[str, Any]) -> tuple[int, Any]:
    """Longer is better."""
    _, first, second = body["messages"][-1]["content"].split("|")
    return 200, said("Better: " + ("A" if len(first) > len(second) else "B" if len(first) < len(second) else "C"))


def test_a_pair_is_shown_in_both_orders(server: Server) -> None:
    server.answer = by_length
    scores = pairwise_judge(url=server.url, **SETTINGS).grade(group("four", "4"))
    assert sorted(asked(server)) == [("4", "four"), ("four", "4")]
    assert [score.score for score in scores] == [1.0, 0.0]
    assert scores[0].remark == "against 1: 1 (Better: A | Better: B)"
    assert scores[1].remark == "against 0: 0 (Better: A | Better: B)"


@pytest.mark.parametrize(("verdict", "place"), [("A", "first"), ("B", "second")])
def test_a_judge_that_prefers_a_place_says_nothing_and_is_named(server: Server, verdict: str, place: str) -> None:
    server.answer = lambda body: (200, said(f"Better: {verdict}"))
    scores = pairwise_judge(url=server.url, **SETTINGS).grade(group("four", "4"))
    assert [score.score for score in scores] == [0.5, 0.5]
    assert all(f"0.5, contradicts itself: the {place} in both orders" in (score.remark or "") for score in scores)


def test_a_tie_in_one_order_is_half_a_contradiction(server: Server) -> None:
    server.answer = lambda body: (200, said("Better: " + ("A" if "|4|" in body["messages"][-1]["content"] else "C")))
    first, second = pairwise_judge(url=server.url, **SETTINGS).grade(group("4", "four"))
    assert (first.score, second.score) == (0.75, 0.25)
    assert "contradicts" not in (first.remark or "")


def test_equal_texts_are_as_good_as_each_other_and_nobody_is_asked(server: Server) -> None:
    scores = pairwise_judge(url=server.url, **SETTINGS).grade(group("4", "4"))
    assert [score.score for score in scores] == [0.5, 0.5] and not server.asked


def test_a_completion_alone_has_the_middle_of_the_scale(server: Server) -> None:
    for scale, middle in (("win_rate", 0.5), ("log_odds", 0.0)):
        (score,) = pairwise_judge(url=server.url, **SETTINGS, scale=scale).grade(group("4"))  # type: ignore[arg-type]
        assert (score.score, score.error) == (middle, None)


@pytest.mark.parametrize(("opponents", "pairs"), [(1, 4), (2, 6), (9, 6)])
def test_each_completion_is_compared_with_those_behind_it(server: Server, opponents: int, pairs: int) -> None:
    server.answer = by_length
    items = group("1", "22", "333", "4444")
    scores = pairwise_judge(url=server.url, **SETTINGS, opponents=opponents).grade(items)
    assert len(asked(server)) == len(set(asked(server))) == 2 * pairs
    assert all({first, second} <= {item.completion for item in items} for first, second in asked(server))
    if pairs == 6:
        assert [score.score for score in scores] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_groups_of_a_batch_are_apart_and_scores_come_in_the_order_of_the_items(server: Server) -> None:
    server.answer = by_length
    one, other = group("1", "22"), group("4444", "333", name="p1")
    mixed = [one[0], other[0], one[1], other[1]]
    scores = pairwise_judge(url=server.url, **SETTINGS).grade(mixed)
    assert [score.score for score in scores] == [0.0, 1.0, 1.0, 0.0]
    assert {frozenset(pair) for pair in asked(server)} == {frozenset(("1", "22")), frozenset(("4444", "333"))}


def test_log_odds_of_a_pair_give_its_preference_back_to_soft_labels(server: Server) -> None:
    """2 votes of 2, half a vote added to each side: p = 2.5 / 3."""
    server.answer = by_length
    scores = pairwise_judge(url=server.url, **SETTINGS, scale="log_odds").grade(group("four", "4"))
    rewards = [score.score for score in scores]
    assert rewards[0] == pytest.approx(math.log(5) / 2) and rewards[1] == pytest.approx(-math.log(5) / 2)
    rows = pl.DataFrame({"group_id": ["p0"] * 2, "sample_index": [0, 1], "reward": rewards})
    pairs = RewardPairs(strategy="all", soft=1.0, ties=True).pairs(rows)
    assert pairs["preference"].to_list() == pytest.approx([2.5 / 3])


def test_a_cycle_has_no_best_one(server: Server) -> None:
    """Rock, paper, scissors: what wins and loses once is worth as much as the others."""
    beats = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}

    def cyclic(body: dict[str, Any]) -> tuple[int, Any]:
        _, first, second = body["messages"][-1]["content"].split("|")
        return 200, said(f"Better: {'A' if (first, second) in beats else 'B'}")

    server.answer = cyclic
    for scale, worth in (("win_rate", 0.5), ("log_odds", 0.0)):
        grader = pairwise_judge(url=server.url, **SETTINGS, scale=scale)  # type: ignore[arg-type]
        assert [s.score for s in grader.grade(group("rock", "paper", "scissors"))] == pytest.approx([worth] * 3)


def test_a_comparison_without_a_verdict_is_an_error_of_both(server: Server) -> None:
    server.answer = lambda body: (200, said("neither")) if "bad" in body["messages"][-1]["content"] else by_length(body)
    scores = pairwise_judge(url=server.url, **SETTINGS).grade(group("22", "1", "bad", "4444", "333"))
    assert [score.score is None for score in scores] == [False, True, True, True, False]
    assert scores[2].error == "no match of 'Better: (.+)'; the judge answered: neither"
    assert "against 2: no verdict" in (scores[1].remark or "")


def test_it_works_in_a_pool_whose_groups_stay_whole(server: Server, grade: Grade) -> None:
    server.answer = by_length
    component = RewardComponent(grader="pairwise_judge", args={"url": server.url, **SETTINGS})
    results = grade([component], group("4", "four"))
    assert [result.reward for result in results] == [0.0, 1.0]
    assert results[0].remarks == {"reward_pairwise_judge": "against 1: 0 (Better: B | Better: A)"}


def test_what_decides_the_preferences_is_in_the_recipe(server: Server) -> None:
    component = RewardComponent(grader="pairwise_judge", args={"url": server.url, **SETTINGS, "scale": "log_odds"})
    recipe = recipe_of(component)["args"]
    assert recipe["scale"] == "log_odds" and "url" not in recipe


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"template": "{first}"}, r"args\.template: has no \{second\} in it"),
        ({"template": "{second} {completion}"}, r"args\.template: has no \{first\} in it"),
        ({"values": {"A": 1, "B": 1}}, r"no verdict prefers the second completion, .* contradicts itself in every pair"),
        ({"values": {"A": 0.5, "B": 0}}, r"no verdict prefers the first completion"),
        ({"values": {}}, r"no verdict prefers the first completion"),
        ({"values": {"A": 10, "B": 0}}, r"'A' stands for 10, expected how sure it is of the first completion, from 0 to 1"),
        ({"opponents": 0}, r"args\.opponents: 0, expected at least 1"),
        ({"pattern": "("}, r"args\.pattern: '\(' is not a regular expression"),
        ({"scale": "elo"}, r"args\.scale: expected"),
        ({"url": "nowhere"}, r"args\.url: 'nowhere' is no address"),
    ],
)
def test_a_judge_that_cannot_compare_is_refused_before_any_work(changes: dict[str, Any], why: str) -> None:
    args = {"url": "http://localhost:1/v1", **SETTINGS, **changes}
    with pytest.raises(UserError, match=why):
        resolve(RewardComponent(grader="pairwise_judge", args=args))
