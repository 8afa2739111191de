"""Patterns of graders that wait for a text which ends the completion."""

from __future__ import annotations

import pytest

from pipeline.config.reward import RewardComponent
from pipeline.prepare.stops import hidden_by_stops


@pytest.mark.parametrize(
    ("pattern", "stop", "waits"),
    [
        ("<answer>(.*?)</answer>", "</answer>", True),
        (r"A: (\d+)\.", ".", True),
        ("<answer>(.*?)(?:</answer>|$)", "</answer>", False),
        ("<answer>([^<]*)(</answer>)?", "</answer>", False),
        ("<answer>(.*?)</answer>", "\n\n", False),
        ("A: (.+)$", "</answer>", False),
        ("A: (.+)$", ".", False),
        (r"A: (.+?)\n\n", "\n\n", True),
    ],
)
def test_a_pattern_that_waits_for_a_stop_text_is_told(pattern: str, stop: str, waits: bool) -> None:
    args = {"extract": pattern}
    found = list(hidden_by_stops([RewardComponent(grader="exact_match", args=args)], [stop]))
    assert bool(found) == waits
    if waits:
        assert found[0].startswith(f"reward.components.0 (exact_match): args.extract waits for {stop!r}, which ends a completion")


def test_a_grader_without_patterns_waits_for_nothing() -> None:
    own = RewardComponent(grader="m:f", args={"pattern": 3})
    assert list(hidden_by_stops([RewardComponent(grader="math_verify"), own], ["x"])) == []
