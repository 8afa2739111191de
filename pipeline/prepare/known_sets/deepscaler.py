"""DeepScaleR: problems of AIME, AMC, Omni-MATH and STILL (agentica-org/DeepScaleR-Preview-Dataset)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="DeepScaleR",
    columns=("problem", "answer", "solution"),
    question="problem",
    answer="answer",
    set_aside=True,
    note="some problems are there twice",
)
