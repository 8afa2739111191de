"""TL;DR with its summaries as labels (CarperAI/openai_summarize_tldr)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="TL;DR (labels)",
    columns=("prompt", "label"),
    question="prompt",
    answer="label",
    begins="SUBREDDIT: r/",
    reward="own",
    set_aside=True,
    note="the reference is a summary that people wrote",
)
