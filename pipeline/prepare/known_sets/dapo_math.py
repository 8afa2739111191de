"""DAPO-Math-17k, and other sets in verl's form: messages, and a reference inside a column (BytedTsinghua-SIA/DAPO-Math-17k)."""

from pipeline.prepare.known_set import KnownSet

SET = KnownSet(
    name="DAPO-Math-17k",
    columns=("data_source", "prompt", "ability", "reward_model"),
    question="prompt",
    answer="reward_model.ground_truth",
    set_aside=True,
    note="verl's form; DAPO-Math-17k has each row a hundred times, of which one is used",
)
