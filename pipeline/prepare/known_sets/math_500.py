"""MATH-500: the held-out problems of MATH that are most used, with their answers (HuggingFaceH4/MATH-500)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="MATH-500",
    columns=("problem", "solution", "answer", "subject", "level", "unique_id"),
    question="problem",
    answer="answer",
)
