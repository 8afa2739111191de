"""Rows that real use found wrong, through workers: each with what it earns."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool, RewardResult

ROWS: list[tuple[str, str, float]] = [
    # completion, reference, reward
    (r"It costs \boxed{\$18.90}.", r"\$18.90", 1.0),
    (r"\boxed{77}", r"\$18.90", 0.0),
    (r"\boxed{18}", r"\text{\$18}", 1.0),
    (r"\boxed{42} no, \boxed{41}", "42", 0.0),
    ("<think>six and sixty-seven</think><answer>73</answer>", "73", 1.0),
    ("<think>So 70 + 3 = 74, no.</think><answer>73</answer>", "73", 1.0),
    (r"\boxed{0.00001}", "1e-05", 1.0),
    (r"\boxed{1.5e3}", "1500", 1.0),
    (r"\boxed{18}", "18 dollars", 1.0),
    (r"\boxed{\frac32}", "1 1/2", 1.0),
    (r"\boxed{1024}", "2**10", 1.0),
    ("The answer is Monday.", "Monday", 1.0),
    (r"\boxed{\frac{1}{2^{98}}}", r"\frac{1}{2^{99}}", 0.0),
    (r"\boxed{100,200,300}", "100, 200, 300", 1.0),
    (r"\boxed{28\%}", "28%", 1.0),
    (r"\boxed{\frac{-1}{2}}", "-1/2", 1.0),
    (r"\boxed{1234}", "1,234", 1.0),
    (r"\boxed{18}", "$18", 1.0),
    (r"\boxed{6}, wait, \boxed{5}", "5", 1.0),
    (r"\boxed{7=8}", r"(8-4)\cdot 6=24", 0.0),
    ("It is not 5", "5", 0.0),
    (r"\boxed{5x+1}", "5", 0.0),
    (r"\boxed{2(3)}", "5", 0.0),
    (r"\boxed{12345}", r"12\,345", 1.0),
    (r"\boxed{1,2}", "1<x<2", 0.0),
    (r"The final answer is 7. I hope it is correct. No: \boxed{5}", "5", 1.0),
    (r"\boxed{12.5\%}", "12.5", 0.0),
    (r"\boxed{2\sqrt{3}}", "2", 0.0),
    (r"\boxed{3\frac{1}{2}}", r"\frac{1}{2}", 0.0),
    (r"\boxed{1.6\times10^{-19}}", r"9.1\times10^{-31}", 0.0),
    (r"\boxed{x > 5}", "5", 0.0),
    (r"\boxed{\neq 5}", "5", 0.0),
    (r"\boxed{5!}", "5", 0.0),
    (r"\boxed{2\,3}", "5", 0.0),
    (r"\boxed{12\,345}", "357", 0.0),
    (r"\boxed{4.9999999}", "5", 1.0),
    (r"\boxed{+5}", "5", 1.0),
    (r"\boxed{0.5%}", r"\frac12\%", 1.0),
    (r"\boxed{12\%}", "12", 0.0),
    (r"\boxed{2^{10}}", "2", 0.0),
    ("<think>It is 42.</think><answer>41</answer>", "42", 0.0),
]

_TEXTS = r"""2\sqrt{3} x^2+1 (1,2) \frac12 1e3 \frac{\sqrt{3}}{2} -\frac{7}{9} 3\pi 12\% \$18.90 [0,1) (-\infty,2] \{1,2,3\}
x=5 y=2x+1 2^{10} 10! \binom{5}{2} 90^\circ \text{(A)} B \text{even} 5\text{cm} 1,234 12\,345 0.\overline{3} 1,2,3 |x|
12{,}346 e^{i\pi} 3+4i \log_2(8) \begin{pmatrix}1\\2\end{pmatrix} 1011_2 3:2 x\le5 1<x<2 \pm2 \emptyset \mathbb{R} \infty
-1/2 5\frac{1}{2} 2(3) \sqrt[3]{2} (0,1)\cup(2,3) x^{2}-y^{2} \frac{x+1}{x-1} a_n=2n+1 f(x)=x^2 \int_0^1x\,dx
\sum_{k=1}^nk \theta \sin\theta \vec{v} (3,4),(5,6) 7=7 n!"""
REFERENCES = _TEXTS.split()


def graded(args: dict[str, Any], items: list[RewardItem]) -> list[RewardResult]:
    with RewardPool(RewardConfig(components=(RewardComponent(grader="math_verify", args=args),), workers=1)) as pool:
        return pool.submit(items).result(timeout=60)


@pytest.fixture(scope="module")
def results() -> list[RewardResult]:
    return graded({}, [RewardItem(completion, reference, {}) for completion, reference, _ in ROWS])


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[f"{completion} for {reference}" for completion, reference, _ in ROWS])
def test_row(number: int, results: list[RewardResult]) -> None:
    assert (results[number].reward, results[number].error) == (ROWS[number][2], None), results[number].remarks


def test_every_reference_equals_itself_in_a_tag_and_in_a_box_and_no_other_equals_it() -> None:
    tagged = [RewardItem(f"It is so: <answer>{text}</answer>", text, {}) for text in REFERENCES]
    boxed = [RewardItem(rf"$\boxed{{{text}}}$", text, {}) for text in REFERENCES]
    others = [RewardItem(rf"\boxed{{{a}}}", b, {}) for a, b in zip(REFERENCES, REFERENCES[1:] + REFERENCES[:1], strict=True)]
    for items, reward in ((tagged, 1.0), (boxed, 1.0), (others, 0.0)):
        found = graded({"extract": "<answer>(.*?)</answer>"} if items is tagged else {}, items)
        assert [(item.completion, r.error) for item, r in zip(items, found, strict=True) if r.reward != reward] == []


def test_a_completion_that_was_cut_off_is_judged_by_its_marks_alone() -> None:
    texts = ["She has 18 eggs.", r"\boxed{18} eggs, and", "The answer is 18"]
    rewards = [
        [r.reward for r in graded({}, [RewardItem(t, "18", {}, finish_reason=end) for t in texts])] for end in ("stop", "length")
    ]
    assert rewards == [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def test_where_the_answer_stood_is_the_remark_of_its_component() -> None:
    (result,) = graded({}, [RewardItem(r"so \boxed{18}", "18", {})])
    assert dict(result.remarks) == {"reward_math_verify": "box: 18"}
