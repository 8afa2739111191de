"""GSM8K: grade-school word problems with worked solutions (openai/gsm8k)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="GSM8K",
    columns=("question", "answer"),
    question="question",
    answer="answer",
    answer_pattern="#### (.+)$",
)
