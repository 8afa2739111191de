"""TL;DR: posts with their summaries (trl-lib/tldr)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="TL;DR",
    columns=("prompt", "completion"),
    question="prompt",
    answer="completion",
    begins="SUBREDDIT: r/",
    reward="own",
    set_aside=True,
    note="the reference is a summary that people wrote",
)
