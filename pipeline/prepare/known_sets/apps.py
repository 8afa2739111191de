"""APPS, TACO and their like: programming problems with tests (codeparrot/apps)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="APPS",
    columns=("question", "solutions", "input_output", "difficulty", "starter_code"),
    question="question",
    answer="input_output",
    reward="own",
    set_aside=True,
    note="the reference is the tests, a JSON object with inputs and outputs, which a function of yours runs",
)
