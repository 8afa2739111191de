"""An iteration that wants more groups than there are prompts."""

from __future__ import annotations

from pipeline.config import SamplingConfig
from pipeline.generate.shards import Group, Job


def test_a_prompt_asked_again_has_a_group_and_seeds_of_its_own() -> None:
    groups = [Group({"prompt_id": "p"}, [1], repeat=repeat) for repeat in range(2)]
    job = Job(
        number=0,
        key="0" * 64,
        groups=groups,
        samples=4,
        sampling=SamplingConfig(),
        purpose="train",
        iteration=0,
        run_seed=0,
        policy_id="policy",
        policy_version=0,
    )
    assert [group.name for group in groups] == ["p", "p#1"]
    assert len({job.seed(group, sample) for group in groups for sample in range(4)}) == 8
