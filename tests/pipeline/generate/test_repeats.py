"""An iteration that wants more groups than there are prompts."""

from __future__ import annotations

import doctest

import pytest

from pipeline.config.engine import SamplingConfig
from pipeline.generate import names
from pipeline.generate.names import GroupNames
from pipeline.generate.shards import Group, RolloutsJob


def test_a_prompt_asked_again_has_a_group_and_seeds_of_its_own() -> None:
    given = GroupNames()
    groups = [Group({"prompt_id": "p"}, [1], given.next("p")) for _ in range(2)]
    job = RolloutsJob(
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


@pytest.mark.parametrize(
    ("prompts", "called"),
    [
        ("q q q", "q q#1 q#2"),
        ("q q q#1", "q q#1 q#1#1"),
        ("q#1 q q q", "q#1 q q#2 q#3"),
        ("q#1 q#1 q q", "q#1 q#1#1 q q#2"),
    ],
)
def test_no_two_groups_have_one_name_whatever_prompts_are_called(prompts: str, called: str) -> None:
    given = GroupNames()
    assert [given.next(prompt) for prompt in prompts.split()] == called.split()


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(names) == (0, 2)
