"""What a run asks for, and in which order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.chain import chain, generates_next
from pipeline.config.run import RunConfig
from pipeline.run.order import Missing, Order
from pipeline.run.state import Run
from pipeline.sources.order import BASE, TRAIN_PROMPTS
from pipeline.store import Artifact, Request

Make = Callable[..., Artifact]
Config = Callable[..., RunConfig]

WHOLE = [
    "base model",
    "training prompts",
    "held-out prompts",
    "generate 0 by base model: sampled of held-out prompts, train of training prompts",
    "evaluate 0 of base model by generate 0 sampled",
    "shape 0 of generate 0 train",
    "score 0 of generate 0 train by base model, base model",
    "train 0 from base model on generate 0 train",
    "generate 1 by train 0: sampled of held-out prompts, train of training prompts",
    "evaluate 1 of train 0 by generate 1 sampled",
    "shape 1 of generate 1 train",
    "replay 1 of generate 0 train",
    "score 1 of generate 1 train by base model, train 0",
    "score 1 of generate 0 train by base model, train 0",
    "train 1 from train 0 on generate 1 train, generate 0 train",
    "generate 2 by train 1: sampled of held-out prompts",
    "evaluate 2 of train 1 by generate 2 sampled",
]
"""Everything that a run of two iterations asks for."""
REMIX = {"train.algorithm": "remix", "replay.iterations": 1, "evaluate.greedy": False, "generate.temperature": 1.0}


MOVING = {
    "iterations": 3,
    "phases": [
        {"iterations": "0-1", "reference": "previous", "replay": {"iterations": 0}},
        {"iterations": "2-", "reference": {"iteration": 1}, "train": {"algorithm": "dpo", "epochs": 1}},
    ],
}


def as_model(checkpoint: Artifact) -> Artifact:
    """With a config.json, which would say how long a prompt may be."""
    (checkpoint.path / "config.json").write_text("{}", encoding="utf-8")
    return checkpoint


class Recorded:
    """Answers every order at once, unless its title is `missing`, and writes it down."""

    def __init__(self, make: Make, missing: str | None = None) -> None:
        self.make = make
        self.missing = missing
        self.asked: list[str] = []
        self.names: dict[str, str] = {}
        self.keys: list[str] = []

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        if order.title == self.missing:
            raise Missing(order.title)
        self.keys += [request.key for request in order.requests]
        self.asked.append(self._words(order))
        return tuple(self._made(order, job.request) for job in order.jobs)

    def _made(self, order: Order, request: Request) -> Artifact:
        name = order.title + (f" {request.recipe['purpose']}" if order.stage == "generate" else "")
        made = self.make(request.kind, name=name, iteration=request.recipe.get("iteration", 0), kept_groups=2, n=len(self.names))
        self.names[made.id] = name
        return as_model(made) if order.title == BASE else made

    def _words(self, order: Order) -> str:
        """An order with the names of what it is made from."""
        jobs = [{parent.role: self.names[parent.id] for parent in job.request.parents} for job in order.jobs]
        first = jobs[0]
        match order.stage:
            case "generate":
                purposes = [job.request.recipe["purpose"] for job in order.jobs]
                of = ", ".join(f"{purpose} of {job['prompts']}" for purpose, job in zip(purposes, jobs, strict=True))
                return f"{order.title} by {first['policy']}: {of}"
            case "evaluate":
                return f"{order.title} of {first['policy']} by {first['sampled']}"
            case "shape":
                return f"{order.title} of {first['rollouts']}"
            case "score":
                return f"{order.title} of {first['rollouts']} by {', '.join(job['checkpoint'] for job in jobs)}"
            case "train":
                rollouts = [name for role, name in first.items() if role.endswith("rollouts")]
                assert [role for role in first if "proximal" in role or "reference" in role], "scores are parents"
                return f"{order.title} from {first['policy']} on {', '.join(rollouts)}"
            case _:
                return order.title


@pytest.fixture
def config_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Config, write_model: Callable[..., Path]) -> Config:
    """A config whose model and prompts are there, with an algorithm that needs everything."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    for name in ("train", "heldout"):
        Path(f"{name}.jsonl").write_text(json.dumps({"question": name, "answer": "0"}), encoding="utf-8")
    return lambda changes=None: make_config({**REMIX, **(changes or {})})


def test_a_run_goes_round_and_ends_with_an_evaluation(config_of: Config, make_artifact: Make) -> None:
    stages = Recorded(make_artifact)
    run = chain(config_of({"iterations": 2}), stages)
    assert stages.asked == WHOLE
    assert run.missing is None
    assert [step.policy.summary["iteration"] for step in run.iterations] == [0, 1, 2]
    assert [step.checkpoint is None for step in run.iterations] == [False, False, True]
    assert all(step.evaluation for step in run.iterations)


@pytest.mark.parametrize("setting", [{"tell.command": "mail me@example.org"}, {"track.to": "tensorboard"}], ids=str)
def test_who_is_told_of_a_run_and_where_its_figures_go_decides_nothing_of_its_results(
    config_of: Config, make_artifact: Make, setting: dict[str, str]
) -> None:
    quiet, told = Recorded(make_artifact), Recorded(make_artifact)
    chain(config_of(), quiet)
    chain(config_of(setting), told)
    assert told.keys == quiet.keys and len(told.keys) > 10


@pytest.mark.parametrize(
    ("until", "last", "missing"),
    [
        (("generate", 0), 3, "evaluate 0"),
        (("evaluate", 0), 4, "shape 0"),
        (("shape", 0), 5, "train 0"),
        (("train", 0), 7, "generate 1"),
        (("generate", 1), 8, "evaluate 1"),
        (("train", 1), 14, "generate 2"),
        (("evaluate", 2), 16, None),
    ],
    ids=str,
)
def test_until_stops_after_its_stage(
    config_of: Config, make_artifact: Make, until: tuple[str, int], last: int, missing: str | None
) -> None:
    stages = Recorded(make_artifact)
    run = chain(config_of({"iterations": 2}), stages, until=until)
    assert stages.asked == WHOLE[: last + 1]
    assert run.missing == missing


@pytest.mark.parametrize(
    ("missing", "done"),
    [
        ("base model", 0),
        ("training prompts", 1),
        ("held-out prompts", 2),
        ("generate 0", 3),
        ("evaluate 0", 4),
        ("shape 0", 5),
        ("score 0", 6),
        ("train 0", 7),
        ("replay 1", 11),
        ("generate 2", 15),
    ],
)
def test_a_stage_that_is_not_there_ends_the_look_and_is_named(
    config_of: Config, make_artifact: Make, missing: str, done: int
) -> None:
    stages = Recorded(make_artifact, missing)
    run = chain(config_of({"iterations": 2}), stages)
    assert stages.asked == WHOLE[:done]
    assert run.missing == missing


def test_what_there_is_is_told_after_every_stage(config_of: Config, make_artifact: Make) -> None:
    told: list[str | None] = []

    def on_change(run: Run) -> None:
        told.append(run.missing)

    chain(config_of({"iterations": 1}), Recorded(make_artifact), on_change)
    stages = ["generate 0", "evaluate 0", "shape 0", "train 0", "generate 1", "evaluate 1"]
    assert [stage for stage in told if stage in stages] == stages
    assert told[-1] is None


def test_rewards_that_teach_nothing_end_the_run_before_it_trains(config_of: Config, make_artifact: Make) -> None:
    class Flat(Recorded):
        def answer(self, order: Order) -> tuple[Artifact, ...]:
            made = super().answer(order)
            counts = {"kept": 8, "positives": 0, "negatives": 0, "groups": 2, "zero_variance_groups": 2, "kept_groups": 2}
            return (self.make("shaped", **counts),) if order.stage == "shape" else made

    answers = Flat(make_artifact)
    run = chain(config_of({"iterations": 2}), answers)
    assert answers.asked == WHOLE[:6]
    assert run.missing is None
    assert run.stopped is not None and run.stopped.rule == "no_signal"
    look = Flat(make_artifact)
    assert chain(config_of({"iterations": 2, "stop.no_signal": None}), look, until=("shape", 0)).missing == "train 0"


def test_an_error_of_a_stage_is_not_swallowed(config_of: Config, make_artifact: Make) -> None:
    class Failing(Recorded):
        def answer(self, order: Order) -> tuple[Artifact, ...]:
            return super().answer(order) if order.stage != "shape" else (_ for _ in ()).throw(ZeroDivisionError)

    with pytest.raises(ZeroDivisionError):
        chain(config_of(), Failing(make_artifact))


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("base model", True),
        ("training prompts", True),
        ("generate 0", True),
        ("evaluate 0", False),
        ("shape 0", False),
        ("replay 1", False),
        ("score 0", False),
        ("train 0", False),
        ("generate 2", True),
        (None, False),
    ],
)
def test_an_engine_is_started_early_only_if_its_answers_come_next(
    config_of: Config, make_artifact: Make, missing: str | None, expected: bool
) -> None:
    assert generates_next(chain(config_of({"iterations": 2}), Recorded(make_artifact, missing))) is expected


def test_the_last_training_that_is_asked_for_wakes_no_engine(config_of: Config, make_artifact: Make) -> None:
    class Woken(Recorded):
        def answer(self, order: Order) -> tuple[Artifact, ...]:
            if order.stage == "train":
                woken[order.title] = order.then
            return super().answer(order)

    woken: dict[str, str | None] = {}
    chain(config_of({"iterations": 2}), Woken(make_artifact), until=("train", 1))
    assert woken == {"train 0": "pipeline.generate", "train 1": None}
    chain(config_of({"iterations": 1}), Woken(make_artifact))
    assert woken["train 0"] == "pipeline.generate"  # the last checkpoint is evaluated


def test_what_is_given_is_not_asked_for(config_of: Config, make_artifact: Make) -> None:
    answers = Recorded(make_artifact)
    given = {name: make_artifact(kind, name=name) for name, kind in ((BASE, "checkpoint"), (TRAIN_PROMPTS, "prompts"))}
    as_model(given[BASE])
    answers.names |= {artifact.id: name for name, artifact in given.items()}
    chain(config_of({"model.path": "gone", "iterations": 1}), answers, until=("generate", 0), given=given)
    assert answers.asked == WHOLE[2:4]


def test_phases_change_what_an_iteration_asks_for(config_of: Config, make_artifact: Make) -> None:
    stages = Recorded(make_artifact)
    chain(config_of(MOVING), stages)
    assert [words for words in stages.asked if words.startswith(("replay", "score"))] == [
        "score 0 of generate 0 train by base model, base model",
        "score 1 of generate 1 train by train 0, train 0",
        "replay 2 of generate 1 train",
        "score 2 of generate 2 train by train 0",  # dpo reads no proximal policy
        "score 2 of generate 1 train by train 0",
    ]
