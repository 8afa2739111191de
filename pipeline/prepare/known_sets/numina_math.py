"""NuminaMath 1.5: competition problems with their answers (AI-MO/NuminaMath-1.5)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="NuminaMath-1.5",
    columns=("problem", "solution", "answer", "problem_type", "question_type", "source"),
    question="problem",
    answer="answer",
    set_aside=True,
    note="of proofs and multiple-choice questions the answer is a word such as proof or MCQ: choose with where",
)
