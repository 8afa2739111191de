"""Phases and schedules: the settings of each iteration, with the papers' own curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.algorithms import resolve
from pipeline.config.course import Course
from pipeline.config.load import change_config
from pipeline.config.phases import Phase, ReferenceConfig, Schedule
from pipeline.config.run import RunConfig
from pipeline.generate.order import heldout_request, rollouts_request
from pipeline.run.parts import Part
from pipeline.shape.order import shape_request
from pipeline.store import Artifact
from pipeline.train.order import train_request

Config = Callable[..., RunConfig]
LAMBDA = {50: 1.0, 51: 0.9, 60: 0.9, 61: 0.8, 70: 0.8, 71: 0.7, 80: 0.7, 81: 0.6, 90: 0.6, 91: 0.5, 500: 0.5}
"""ReMix's weight of the base model at some training steps."""


def test_remix_weight_of_the_base_model() -> None:
    schedule = Schedule(steps={0: 1, 51: 0.9, 61: 0.8, 71: 0.7, 81: 0.6, 91: 0.5}, by="step")
    assert {step: schedule.value(step) for step in LAMBDA} == LAMBDA
    for step, value in LAMBDA.items():
        convex: Any = resolve("remix", {"step": step})
        assert convex.regularizers[0].share == pytest.approx(value)


def test_spear_curricula() -> None:
    gamma, mu = Schedule(cosine=(0, 1), until=300), Schedule(cosine=(1, 0), until=200)
    assert [round(gamma.value(step), 4) for step in (0, 75, 150, 300, 301)] == [0, 0.1464, 0.5, 1, 1]
    assert [round(mu.value(step), 4) for step in (0, 50, 100, 200, 201)] == [1, 0.8536, 0.5, 0, 0]
    for step in (0, 75, 150, 300, 900):
        cells: Any = resolve("spear", {"step": step})
        assert cells.advantage.gamma == pytest.approx(gamma.value(step))


def test_the_bonus_for_calls_of_tools_fades_over_iterations(make_config: Config) -> None:
    """SPEAR's mu(t) = (1 + cos(pi t / T)) / 2 with T = 4, times a bonus of 0.1."""
    course = Course(make_config({"iterations": 6, "schedules": {"shape.tool_bonus": {"cosine": [0.1, 0], "until": 4}}}))
    found = [course.at(number).shape.tool_bonus for number in range(6)]
    assert found == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0, 0], abs=1e-7)


def test_a_line_ends_exactly_and_stays_there() -> None:
    rate = Schedule(linear=(1e-5, 1e-6), until=5)
    assert rate.value(0) == 1e-5
    assert rate.value(5) == rate.value(7) == 1e-6
    assert Schedule(linear=(64, 128), until=3, whole=True).value(1) == 85


@pytest.mark.parametrize(
    ("written", "versions"),
    [("base", [0, 0, 0, 0]), ("previous", [0, 1, 2, 3]), ({"every": 2}, [0, 0, 2, 2]), ({"iteration": 1}, [1, 1, 1, 1])],
    ids=str,
)
def test_whose_logprobs_the_reference_has(written: Any, versions: list[int]) -> None:
    reference = ReferenceConfig.model_validate(written)
    assert [reference.version(number) for number in range(4)] == versions


@pytest.mark.parametrize(("written", "span"), [("0-2", (0, 2)), (3, (3, 3)), ("4-", (4, None))], ids=str)
def test_the_iterations_of_a_phase(written: Any, span: tuple[int, int | None]) -> None:
    phase = Phase(iterations=written)
    assert (phase.first, phase.last) == span


def test_a_run_without_phases_is_as_it_is_written(make_config: Config) -> None:
    config = make_config({"iterations": 3})
    assert all(Course(config).at(number) is config for number in range(9))
    assert list(Course(config).distinct()) == [(0, config)]


def test_a_phase_changes_the_file_and_not_the_phase_before(make_config: Config) -> None:
    phases = [
        {"iterations": "0-1", "train": {"algorithm": "sft", "epochs": 1}},
        {"iterations": "2-", "train": {"algorithm_args": {"high": 2.0}}, "generate": {"temperature": 0.7}},
    ]
    course = Course(make_config({"iterations": 3, "train.algorithm_args": {"low": 0.6, "high": 1.0}, "phases": phases}))
    first, last = course.at(0), course.at(2)
    assert (first.train.algorithm, first.train.algorithm_args, first.train.epochs) == ("sft", {}, 1)
    assert (last.train.algorithm, last.train.epochs) == ("rec-oneside-nois", 4)
    assert last.train.algorithm_args == {"low": 0.6, "high": 2.0}
    assert (first.generate.temperature, last.generate.temperature) == (1.0, 0.7)
    assert [number for number, _ in course.distinct()] == [0, 2]
    assert [course.phase(number) for number in range(4)] == [0, 0, 1, 1]


def test_the_time_of_a_phase_begins_with_it(make_config: Config) -> None:
    inner = {"train.learning_rate": {"steps": {0: 1e-3, 1: 1e-4}}}
    phases = [{"iterations": "0-1"}, {"iterations": "2-", "schedules": inner}]
    outer = {"train.learning_rate": {"linear": [0.5, 0.1], "until": 4}}
    course = Course(make_config({"iterations": 4, "phases": phases, "schedules": outer}))
    assert [course.at(number).train.learning_rate for number in range(4)] == pytest.approx([0.5, 0.4, 1e-3, 1e-4])
    assert course.scheduled(3) == {"train.learning_rate": 1e-4}


def test_steps_are_those_that_the_iterations_before_ask_for(make_config: Config) -> None:
    """64 completions in steps of 24 are 3 steps an epoch: 6 of two epochs, then 3 of one."""
    step = {"train.algorithm_args.step": {"linear": [0, 1000], "until": 1000, "by": "step", "whole": True}}
    changes = {
        "iterations": 4,
        "generate": {"prompts": 16, "samples": 4},
        "train": {"algorithm": "remix", "batch_completions": 24, "epochs": 2},
        "phases": [{"iterations": "0-1"}, {"iterations": "2-", "train": {"epochs": 1}}],
    }
    course = Course(make_config({**changes, "schedules": step}))
    assert [course.at(number).train.algorithm_args["step"] for number in range(4)] == [0, 6, 12, 15]
    changes["phases"] = [{"iterations": "0-1"}, {"iterations": "2-", "schedules": step}]
    course = Course(make_config(changes))
    assert [course.at(number).train.algorithm_args.get("step") for number in range(4)] == [None, None, 0, 6]


def test_a_later_phase_leaves_the_keys_of_earlier_iterations(make_config: Config, make_artifact: Callable[..., Artifact]) -> None:
    policy, prompts = make_artifact("checkpoint"), make_artifact("prompts")
    rollouts, shaped = make_artifact("rollouts"), make_artifact("shaped")

    def keys(config: RunConfig, number: int) -> list[str]:
        here = Course(config).at(number)
        asked = [
            rollouts_request(here, number, policy, prompts),
            shape_request(here, number, rollouts),
            train_request(here, number, policy, [Part(rollouts, shaped)]),
            heldout_request(config, policy, prompts, greedy=False),
        ]
        return [request.key for request in asked]

    one = make_config({"iterations": 2, "phases": [{"iterations": 0}, {"iterations": "1-"}]})
    last = {"iterations": "1-", "train": {"algorithm": "grpo"}, "generate": {"samples": 3}}
    two = make_config({"iterations": 2, "phases": [{"iterations": 0}, last]})
    assert keys(one, 0) == keys(two, 0) == keys(make_config(), 0)
    assert [a == b for a, b in zip(keys(one, 1), keys(two, 1), strict=True)] == [False, False, False, True]


def test_phases_survive_the_json_of_a_record(make_config: Config) -> None:
    config = make_config(
        {
            "iterations": 3,
            "reference": "previous",
            "phases": [{"iterations": "0-", "schedules": {"train.learning_rate": {"steps": {0: 0.5, 2: 0.25}}}}],
        }
    )
    again = change_config(config, ["iterations=4"])
    assert [Course(again).at(number).train.learning_rate for number in range(4)] == [0.5, 0.5, 0.25, 0.25]
    assert str(again.reference) == "previous"
    assert math.isclose(Course(config).table()[-1].settings["train.learning_rate"], 0.25)
