"""When a run ends before its last iteration, and which checkpoint is its best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.config.run import RunConfig
from pipeline.run.parts import Part
from pipeline.run.state import Answers, Iteration, Run
from pipeline.run.stopping import best_of, generated_tokens, stop_of
from pipeline.store import Artifact

Make = Callable[..., Artifact]
Runs = Callable[..., Run]


@pytest.fixture
def run_of(make_config: Callable[..., RunConfig], make_artifact: Make) -> Runs:
    """run_of({"stop.patience": 2}, [0.3, 0.4]): one iteration per pass@1, the newest just evaluated, the others trained."""

    def make(settings: dict[str, Any], values: list[float | None], **figures: Any) -> Run:
        run = Run(make_config({"iterations": 9, **settings}))
        for number, value in enumerate(values):
            answers = Answers(make_artifact("rollouts", number=number, of="heldout", tokens=10), None, None)
            evaluation = make_artifact("evaluation", number=number, pass_at={"1": {"value": value}})
            run.iterations.append(Iteration(number, make_artifact("checkpoint", number=number), answers, evaluation))
        for step in run.iterations[:-1]:
            step.checkpoint = make_artifact("checkpoint", number=step.iteration + 1)
        if figures:
            run.iterations[-1].checkpoint = make_artifact("checkpoint", number=len(values), **figures)
        return run

    return make


def test_a_run_without_rules_goes_on(run_of: Runs) -> None:
    assert stop_of(run_of({}, [0.9, 0.1, 0.0], entropy=0.0, kl_behavior=9.0)) is None


@pytest.mark.parametrize(
    ("rules", "values", "figures", "rule", "healthy"),
    [
        ({"stop.target_pass_at_1": 0.8}, [0.3, 0.8], {}, "target_pass_at_1", True),
        ({"stop.patience": 2}, [0.3, 0.5, 0.5, 0.4], {}, "patience", False),
        ({"stop.patience": 1, "stop.min_gain": 0.05}, [0.3, 0.34], {}, "patience", False),
        ({"stop.max_drop": 0.2}, [0.3, 0.6, 0.35], {}, "max_drop", False),
        ({"stop.min_entropy": 0.1}, [0.3], {"entropy": 0.05}, "min_entropy", False),
        ({"stop.max_entropy": 2.0}, [0.3], {"entropy": 2.5}, "max_entropy", False),
        ({"stop.max_kl": 0.5}, [0.3], {"kl_behavior": 0.6}, "max_kl", False),
        ({"stop.max_tokens": 20}, [0.3, 0.4], {"entropy": 1.0}, "max_tokens", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rule_that_is_broken_ends_the_run_and_says_why(
    run_of: Runs, rules: dict[str, Any], values: list[float | None], figures: dict[str, Any], rule: str, healthy: bool
) -> None:
    stop = stop_of(run_of(rules, values, **figures))
    assert stop is not None
    assert (stop.rule, stop.iteration, stop.healthy) == (rule, len(values) - 1, healthy)
    assert any(digit in stop.why for digit in "0123456789")


@pytest.mark.parametrize(
    ("rules", "values", "figures"),
    [
        ({"stop.target_pass_at_1": 0.8}, [0.3, 0.79], {}),
        ({"stop.patience": 2}, [0.3, 0.5, 0.4], {}),
        ({"stop.patience": 1, "stop.min_gain": 0.05}, [0.3, 0.36], {}),
        ({"stop.max_drop": 0.2}, [0.3, 0.6, 0.41], {}),
        ({"stop.min_entropy": 0.1, "stop.max_entropy": 1.0, "stop.max_kl": 1.0}, [0.3], {"entropy": 0.5, "kl_behavior": 0.5}),
        ({"stop.min_entropy": 0.1, "stop.max_kl": 1.0}, [0.3], {"entropy": None, "kl_behavior": None}),
        ({"stop.max_tokens": 21}, [0.3, 0.4], {"entropy": 1.0}),
        ({"stop.target_pass_at_1": 0.8}, [None], {}),
    ],
    ids=str,
)
def test_a_rule_that_holds_lets_the_run_go_on(
    run_of: Runs, rules: dict[str, Any], values: list[float | None], figures: dict[str, Any]
) -> None:
    assert stop_of(run_of(rules, values, **figures)) is None


def test_too_many_failed_rewards_end_the_run(run_of: Runs, make_artifact: Make) -> None:
    run = run_of({"stop.max_failed_rewards": 0.1}, [0.3])
    rollouts = make_artifact("rollouts", completions=10, statuses={"ok": 8, "reward_error": 2})
    run.iterations[-1].answers = Answers(rollouts, None, rollouts)
    stop = stop_of(run)
    assert stop is not None
    assert "20.0% of the rewards failed, more than 10.0%" in stop.why


ROUNDS = {
    "flat": {"kept": 8, "positives": 0, "negatives": 0, "groups": 2, "zero_variance_groups": 2},
    "mixed": {"kept": 8, "positives": 3, "negatives": 3, "groups": 2, "zero_variance_groups": 1},
    "dropped": {"kept": 0, "positives": 0, "negatives": 0, "groups": 2, "zero_variance_groups": 2},
    "alike": {"kept": 8, "positives": 8, "negatives": 0, "groups": 2, "zero_variance_groups": 2, "only_reward": 1.0},
    "unknown": {},
}
"""Summaries of shaped rollouts."""


@pytest.fixture
def shaped_run(make_config: Callable[..., RunConfig], make_artifact: Make) -> Callable[..., Run]:
    """shaped_run({}, ["mixed", "flat"]): one iteration per summary of its shaped rollouts, the newest not yet trained."""

    def make(rules: dict[str, Any], rounds: list[str], replayed: Sequence[str] = ()) -> Run:
        run = Run(make_config({"iterations": 9, **rules}))
        for number, name in enumerate(rounds):
            answers = Answers(make_artifact("rollouts", of=number), None, make_artifact("rollouts", by=number))
            step = Iteration(number, make_artifact("checkpoint", by=number), answers)
            step.shaped = make_artifact("shaped", by=number, **ROUNDS[name])
            run.iterations.append(step)
        for number, name in enumerate(replayed):
            part = Part(make_artifact("rollouts", again=number), make_artifact("shaped", again=number, **ROUNDS[name]))
            run.iterations[-1].replayed += (part,)
        return run

    return make


@pytest.mark.parametrize(
    ("rules", "rounds", "replayed", "why"),
    [
        ({}, ["flat"], [], "no reward differs within any of 2 groups, so"),
        ({}, ["mixed", "flat"], [], "no reward differs within any of 2 groups, so"),
        ({}, ["alike"], [], "all rewards are 1, so"),
        ({}, ["flat"], ["flat"], "no reward differs within any of 4 groups, so"),
        ({"stop.no_signal": 2}, ["flat", "flat"], [], "no reward differs within any of 2 groups (2 rounds in a row), so"),
        ({"stop.no_signal": 2}, ["flat", "dropped", "alike"], [], "all rewards are 1 (2 rounds in a row), so"),
    ],
    ids=str,
)
def test_rewards_that_teach_nothing_end_the_run(
    shaped_run: Runs, rules: dict[str, Any], rounds: list[str], replayed: list[str], why: str
) -> None:
    stop = stop_of(shaped_run(rules, rounds, replayed))
    assert stop is not None
    assert (stop.rule, stop.iteration, stop.healthy) == ("no_signal", len(rounds) - 1, False)
    assert stop.why.startswith(why)
    assert "stop.no_signal: null goes on all the same" in stop.why


@pytest.mark.parametrize(
    ("rules", "rounds", "replayed"),
    [
        ({}, ["mixed"], []),
        ({}, ["dropped", "dropped", "dropped"], []),
        ({}, ["flat", "mixed"], []),
        ({}, ["flat"], ["mixed"]),
        ({}, ["alike"], ["mixed"]),
        ({"stop.no_signal": None}, ["flat", "flat", "flat"], []),
        ({"stop.no_signal": 2}, ["flat", "mixed", "flat"], []),
        ({"stop.no_signal": 3}, ["alike", "flat"], []),
        ({}, ["unknown"], []),
    ],
    ids=str,
)
def test_a_round_that_teaches_something_or_trains_nothing_lets_the_run_go_on(
    shaped_run: Runs, rules: dict[str, Any], rounds: list[str], replayed: list[str]
) -> None:
    assert stop_of(shaped_run(rules, rounds, replayed)) is None


def test_a_round_before_which_others_were_silent_is_judged_once_it_is_shaped(shaped_run: Runs) -> None:
    run = shaped_run({}, ["flat", "flat"])
    run.iterations[-1].shaped = None
    assert stop_of(run) is None


def test_the_best_checkpoint_is_the_earliest_of_the_highest(run_of: Runs) -> None:
    best = best_of(run_of({}, [0.3, 0.6, None, 0.6, 0.5]))
    assert best is not None
    assert best.iteration == 1
    assert best_of(run_of({}, [None])) is None


def test_an_artifact_that_is_used_twice_costs_its_tokens_once(run_of: Runs) -> None:
    run = run_of({}, [0.3, 0.4])
    again = run.iterations[0].answers
    assert again is not None
    run.iterations[1].answers = Answers(again.sampled, again.sampled, None)
    assert generated_tokens(run) == 10
