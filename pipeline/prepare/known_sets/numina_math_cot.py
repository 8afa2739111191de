"""NuminaMath-CoT: competition problems whose answers stand in their solutions (AI-MO/NuminaMath-CoT)."""

from pipeline.prepare.known_set import BOXED, KnownSet

SET = KnownSet(
    name="NuminaMath-CoT",
    columns=("source", "problem", "solution", "messages"),
    question="problem",
    answer="solution",
    answer_pattern=BOXED,
    set_aside=True,
    note="answers are what the last box of a solution holds; problems without one are set aside",
)
