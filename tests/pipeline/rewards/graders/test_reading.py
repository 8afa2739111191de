"""Where an answer is found, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.rewards.graders.maths import check, math_verify
from pipeline.rewards.items import Score


def graded(
    completion: str, reference: str, prompt: dict[str, Any] | None = None, **settings: Any
) -> tuple[float | None, str | None]:
    said = math_verify(completion, reference, prompt or {}, **settings)
    assert isinstance(said, Score)
    return said.score, said.remark


@pytest.mark.parametrize(
    ("completion", "remark"),
    [
        (r"so \boxed{18}. The answer is 5", "box: 18"),
        (r"\boxed{\frac{1}{2}}", r"box: \frac{1}{2}"),
        (r"\boxed{18", "box"),
        ("<answer> 18 </answer>", "tag: 18"),
        ("<answer>The answer is 18.</answer>", "tag: 18"),
        ("9 * 2 = 18\n#### 18\n", "marker: 18"),
        ("The answer is 18. It is late.", "phrase: 18"),
        ("The answer is not 18.", "number"),
        ("18", "whole: 18"),
        ("She sells 18 of them.", "number: 18"),
        ("She does not sell 18.", "number"),
        ("no idea", "none"),
        ("", "none"),
    ],
)
def test_the_place_of_the_answer_is_told(completion: str, remark: str) -> None:
    assert graded(completion, "18")[1] == remark


def test_what_extract_captures_is_the_place_and_all_else_is_not_read() -> None:
    settings: dict[str, Any] = {"extract": "Result: (.*)"}
    assert graded("Result: 18", "18", **settings) == (1.0, "extract: 18")
    assert graded(r"Result: \boxed{18}", "18", **settings) == (1.0, "extract: 18")
    assert graded(r"\boxed{18}", "18", **settings) == (0.0, "none")


@pytest.mark.parametrize("text", ["She has 18", "18", "The answer is 18", "#### 18", "<think>so 18", "<answer>18", r"\boxed{18"])
def test_a_completion_that_was_cut_off_is_judged_by_a_mark_that_is_whole(text: str) -> None:
    assert graded(text, "18", finish_reason="length")[0] == 0


@pytest.mark.parametrize(
    "text", ["The answer is 18. And", "#### 18\nQ", "<think>1</think><answer>18</answer>", r"\boxed{18} and"]
)
def test_a_whole_mark_counts_though_the_completion_was_cut_off(text: str) -> None:
    assert graded(text, "18", finish_reason="length")[0] == 1


def test_a_tag_may_be_open_where_the_completion_ended_by_itself() -> None:
    assert graded("<answer>18", "18", finish_reason="stop") == (1.0, "tag: 18")
    assert graded("<answer>18", "18") == (0.0, "tag")


def test_a_step_is_no_answer_unless_the_completion_is_known_to_have_ended() -> None:
    steps = "16 - 3 - 4 = 9 eggs are left.\nShe makes 9 * 2 = 18 dollars."
    assert graded(steps, "18")[0] == 0
    assert graded(steps, "18", finish_reason="stop") == (1.0, "number: 18 dollars")


def test_an_echo_of_the_question_is_no_answer() -> None:
    question = "Tell how many eggs there are if the farmer has 18."
    assert graded(question, "18", {"question": question}, finish_reason="stop")[0] == 0
    assert graded(question[7:], "18", {"question": question}, finish_reason="stop")[0] == 0
    assert graded(f"{question} It is 18.", "18", {"question": question})[0] == 1


def test_a_reference_may_be_a_whole_solution() -> None:
    assert graded("18", "9 * 2 = <<9*2=18>>18 dollars.\n#### 18")[0] == 1
    assert graded("18", r"so it is $\boxed{18}$, not 19")[0] == 1


@pytest.mark.parametrize(
    "text",
    [
        "12 ",
        "1 1/2 ",
        "-",
        "<<1",
        r"\boxed{}",
        r"\boxed{",
        "the answer is 5. ",
        "<answer></answer>",
        "$x$ ",
        "**",
        "$5 ",
        "1+",
        "(",
        "9!",
    ],
)
def test_sixteen_thousand_characters_take_at_most_fifty_milliseconds(text: str) -> None:
    graded("x+1", "y+1")  # the numbers' library is imported
    long = (text * 16_000)[:16_000]
    for completion in (long, rf"\boxed{{{long}}}"):
        assert seconds(partial(graded, completion, r"\sqrt{3}x+1", finish_reason="stop")) < 0.05


def seconds(work: Callable[[], object]) -> float:
    """The least processor time of three."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


@pytest.mark.parametrize(
    "expression",
    [
        *("2^{10^{9}}", "9^{9^{9^{9}}}", "100000!", "(((9!)!)!)!", r"\binom{10^9}{10^8}", "1.00000001^{99999999}" * 8),
        *("2^9999+" * 40 + "1", r"\sin 10^{99}", "(x!)" * 60, "x^9" * 60, "(" * 200, "9^" * 99 + "9", r"\sqrt" * 99 + "2"),
        *("-" * 500 + "1", r"e^{e^{e^{e^{e}}}}"),
    ],
)
def test_no_expression_takes_long(expression: str) -> None:
    graded("x+1", "y+1")
    boxed = rf"\boxed{{{expression}}}"
    assert graded(boxed, r"\sqrt{3}+x")[0] == 0
    assert graded(boxed, expression)[0] == 1
    assert seconds(lambda: graded(boxed, r"\sqrt{3}+x")) < 0.05


def test_nothing_in_a_completion_is_run_or_raised() -> None:
    for text in (
        "__import__('os')",
        r"\input{x}",
        "{" * 99,
        "\x00\x02\x03\x04",
        "\ud800",
        "٣",
        "1/0",
        "0^{-1}",
        r"\frac{1}{0}",
        "%",
        "^",
        "_",
        "&",
    ):
        assert graded(rf"\boxed{{{text}}}", "5")[0] == 0


def test_a_precision_out_of_bounds_is_refused() -> None:
    with pytest.raises(UserError, match=r"args\.precision: 99, expected decimal places"):
        check(precision=99)


@pytest.mark.parametrize(("completion", "reward"), [(r"\boxed{12\%}", 1.0), ("the sum is 5 or 6", 1.0)])
def test_the_library_keeps_its_own_behavior(completion: str, reward: float) -> None:
    reference = "12" if "12" in completion else "6"
    assert math_verify(completion, reference, {}, reading="library") == reward
