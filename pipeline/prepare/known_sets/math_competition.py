"""MATH: competition problems with solutions in LaTeX (hendrycks/competition_math and its copies)."""

from pipeline.prepare.known_set import BOXED, KnownSet

SET = KnownSet(
    name="MATH",
    columns=("problem", "level", "type", "solution"),
    question="problem",
    answer="solution",
    answer_pattern=BOXED,
    set_aside=True,
    note="answers are what the last box of a solution holds",
)
