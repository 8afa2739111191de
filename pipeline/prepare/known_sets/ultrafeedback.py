"""UltraFeedback, binarized: a prompt with a chosen and a rejected answer (HuggingFaceH4/ultrafeedback_binarized)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="UltraFeedback",
    columns=("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
    question="prompt",
    answer="chosen.1.content",
    reward="own",
    set_aside=True,
    note="the reference is the chosen answer. Pairs to train on: rollbook import",
)
