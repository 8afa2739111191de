"""Tülu 3 RLVR: GSM8K, MATH and instructions with constraints (allenai/RLVR-GSM-MATH-IF-Mixed-Constraints)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="Tülu 3 RLVR",
    columns=("messages", "ground_truth", "dataset"),
    question="messages",
    answer="ground_truth",
    set_aside=True,
    note="references of dataset 'ifeval' are constraints, which only a function of yours checks: choose with where",
)
