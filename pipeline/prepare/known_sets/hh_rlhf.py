"""hh-rlhf: dialogues with a chosen and a rejected ending (Anthropic/hh-rlhf)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="hh-rlhf",
    columns=("chosen", "rejected"),
    question="chosen",
    answer="chosen",
    answer_pattern=r"(?s).*\n\nAssistant:(.*)",
    transcript=True,
    reward="own",
    set_aside=True,
    note="the reference is the chosen ending. Pairs to train on: rollbook import",
)
