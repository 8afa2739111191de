"""exact_match and regex, called as a worker calls them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent
from pipeline.rewards.graders.text import number
from pipeline.rewards.items import Score
from pipeline.rewards.registry import resolve


def score(grader: str, completion: str, answer: str | None, **args: Any) -> float:
    value = said(grader, completion, answer, **args)
    assert value.score is not None
    return value.score


def said(grader: str, completion: str, answer: str | None, **args: Any) -> Score:
    value = resolve(RewardComponent(grader=grader, args=args))(completion, answer, {})
    assert isinstance(value, (float, Score))
    return value if isinstance(value, Score) else Score(value)


def test_which_of_several_matches_counted_is_said() -> None:
    twice = "#### 18\nno:\n#### 20"
    assert said("regex", twice, "20", pattern="#### (.+)") == Score(1.0, remark="the last of 2 matches")
    assert said("regex", twice, "20", pattern="#### (.+)", which="first") == Score(0.0, remark="the first of 2 matches")
    assert said("exact_match", twice, "20", extract="#### (.+)") == Score(1.0, remark="the last of 2 matches")
    assert said("regex", "#### 18", "18", pattern="#### (.+)") == Score(1.0)
    assert said("exact_match", "18", "18") == Score(1.0)


@pytest.mark.parametrize(
    ("completion", "answer", "args", "expected"),
    [
        ("41", "41", {}, 1.0),
        (" 41\n", "41 ", {}, 1.0),
        ("42", "41", {}, 0.0),
        ("", "", {}, 1.0),
        ("Oslo", "oslo", {}, 0.0),
        ("Oslo", "oslo", {"ignore_case": True}, 1.0),
        ("STRASSE", "straße", {"ignore_case": True}, 1.0),
        ("a  b\n\tc", "a b c", {}, 0.0),
        ("a  b\n\tc", "a b c", {"normalize_whitespace": True}, 1.0),
        ("ab", "a b", {"normalize_whitespace": True}, 0.0),
        ("first <a>1</a> then <a> 2 </a>", "2", {"extract": "<a>(.*?)</a>"}, 1.0),
        ("first <a>1</a> then <a> 2 </a>", "1", {"extract": "<a>(.*?)</a>"}, 0.0),
        ("2", "2", {"extract": "<a>(.*?)</a>"}, 0.0),
        ("n = 17 or 18", "18", {"extract": r"\d+"}, 1.0),
    ],
)
def test_exact_match(completion: str, answer: str, args: dict[str, Any], expected: float) -> None:
    assert score("exact_match", completion, answer, **args) == expected


@pytest.mark.parametrize(
    ("completion", "answer", "args", "expected"),
    [
        ("#### 18", "18", {}, 1.0),
        ("#### 18\nno:\n#### 20", "20", {}, 1.0),
        ("#### 18\nno:\n#### 20", "18", {}, 0.0),
        ("#### 18\nno:\n#### 20", "18", {"which": "first"}, 1.0),
        ("18", "18", {}, 0.0),
        ("18", "18", {"which": "first"}, 0.0),
        ("#### 1,234", "1234", {}, 0.0),
        ("#### 1,234", "1234", {"numeric": True}, 1.0),
        ("#### $1,234.00.", "1234", {"numeric": True}, 1.0),
        ("#### \N{MINUS SIGN}3", "-3", {"numeric": True}, 1.0),
        ("#### 1,23", "123", {"numeric": True}, 0.0),
        ("#### blue", "blue", {"numeric": True}, 1.0),
        ("#### 5", "five", {"numeric": True}, 0.0),
        ("answer: 41", "41", {"pattern": r"#### (\d+)|answer: (\d+)"}, 1.0),
        ("17 or 18", "18", {"pattern": r"\d+"}, 1.0),
        ("<think>x</think>", None, {"pattern": "^<think>", "compare": False}, 1.0),
        ("x</think>", None, {"pattern": "^<think>", "compare": False}, 0.0),
    ],
)
def test_regex(completion: str, answer: str | None, args: dict[str, Any], expected: float) -> None:
    assert score("regex", completion, answer, **{"pattern": r"#### (.+)"} | args) == expected


@pytest.mark.parametrize("grader", ["exact_match", "regex", "math_verify"])
def test_a_prompt_without_an_answer_is_an_error_not_a_zero(grader: str) -> None:
    args = {"pattern": ".*"} if grader == "regex" else {}
    with pytest.raises(ValueError, match="no answer"):
        score(grader, "41", None, **args)


@pytest.mark.parametrize("grader", ["exact_match", "math_verify", "reasoning_gym"])
def test_a_broken_extract_pattern_is_refused_with_its_position(grader: str) -> None:
    with pytest.raises(UserError, match=r"extract: '\(' is not a regular expression: .* at position 0"):
        resolve(RewardComponent(grader=grader, args={"extract": "("}))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", "7"),
        (" +7. ", "7"),
        ("-$1,000,000.50", "-1000000.50"),
        ("$-2", "-2"),
        (".5", "0.5"),
        ("1_000", None),
        ("nan", None),
        ("1e3", None),
        ("-", None),
        ("", None),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", None),
    ],
)
def test_number(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Decimal(value))
