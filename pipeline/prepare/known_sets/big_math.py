"""Big-Math: problems with closed-form answers and how often a model solves them (SynthLabsAI/Big-Math-RL-Verified)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="Big-Math",
    columns=("problem", "answer", "source", "domain", "llama8b_solve_rate"),
    question="problem",
    answer="answer",
    set_aside=True,
    note='choose by difficulty with where: "llama8b_solve_rate < 0.5"',
)
