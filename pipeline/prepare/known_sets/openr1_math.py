"""OpenR1-Math-220k: problems with a reasoning model's solutions (open-r1/OpenR1-Math-220k)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="OpenR1-Math",
    columns=(
        "problem",
        "solution",
        "answer",
        "problem_type",
        "question_type",
        "source",
        "generations",
        "correctness_math_verify",
    ),
    question="problem",
    answer="answer",
    set_aside=True,
    note="proofs have no answer to compare with. Its solutions: rollbook import",
)
