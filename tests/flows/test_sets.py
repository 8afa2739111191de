"""Held-out sets beside the run's own: when they are due, what they ask for, where their figures go, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.chain import chain
from pipeline.config.run import RunConfig
from pipeline.look.report.terminal import closing_lines
from pipeline.look.trackers.series import points
from pipeline.run.order import Order
from pipeline.run.record import load_run, save_run
from pipeline.run.status import status
from pipeline.store import Artifact, Request

Make = Callable[..., Artifact]
Config = Callable[..., RunConfig]
OTHER: dict[str, Any] = {
    "name": "hard",
    "prompts": {"path": "hard.jsonl"},
    "reward": {"components": [{"grader": "exact_match", "name": "exact"}, {"grader": "regex", "args": {"pattern": "(.*)"}}]},
    "template": "Hard: {question}",
    "samples": 2,
    "temperature": 0.5,
    "greedy": True,
    "max_tokens": 7,
    "solved_by": "exact",
    "every": 2,
}
FIGURES = {"pass_at": {"1": {"value": 0.25, "low": 0.1, "high": 0.5}}, "greedy": None}


@pytest.fixture
def config_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Config, write_model: Callable[..., Path]) -> Config:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    for name in ("train", "heldout", "hard"):
        Path(f"{name}.jsonl").write_text(json.dumps({"question": name, "answer": "0"}), encoding="utf-8")
    return lambda changes=None: make_config({"evaluate.sets": [OTHER], "evaluate.greedy": False, **(changes or {})})


class Answering:
    """Answers every order at once, and keeps it."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self.orders: list[Order] = []

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        self.orders.append(order)
        return tuple(self._made(order, job.request, place) for place, job in enumerate(order.jobs))

    def _made(self, order: Order, request: Request, place: int) -> Artifact:
        figures = FIGURES if request.kind == "evaluation" else {}
        made = self._make(request.kind, name=f"{order.title} {place}", iteration=0, kept_groups=2, **figures)
        if order.title == "base model":
            (made.path / "config.json").write_text("{}", encoding="utf-8")
        return made

    def of_the_set(self) -> list[Order]:
        return [order for order in self.orders if order.title.endswith(" hard")]


def test_a_set_judges_every_second_checkpoint_and_the_last(config_of: Config, make_artifact: Make) -> None:
    answering = Answering(make_artifact)
    run = chain(config_of({"iterations": 3}), answering)
    asked = [order.title for order in answering.of_the_set()]
    assert asked[0] == "held-out prompts hard"
    assert asked[1:] == [f"{stage} {n} hard" for n in (0, 2, 3) for stage in ("generate", "evaluate")]
    assert [list(step.sets) for step in run.iterations] == [["hard"], [], ["hard"], ["hard"]]


def test_a_set_has_its_own_prompts_graders_and_sampling(config_of: Config, make_artifact: Make) -> None:
    answering = Answering(make_artifact)
    chain(config_of(), answering)
    prompts, generate, evaluate = answering.of_the_set()[:3]
    assert prompts.jobs[0].request.recipe["template"] == "Hard: {question}"
    recipes = [job.request.recipe for job in generate.jobs]
    assert [recipe["purpose"] for recipe in recipes] == ["sampled", "greedy"]
    assert recipes[0]["samples"] == 2 and recipes[0]["sampling"]["temperature"] == 0.5
    assert recipes[0]["sampling"]["max_tokens"] == 7
    assert [component["grader"] for component in recipes[0]["reward"]] == ["exact_match", "regex"]
    assert evaluate.jobs[0].request.recipe["solved_by"] == "exact"
    assert evaluate.jobs[0].request.recipe["k"] == [1]


def test_sets_change_no_key_of_the_rest(config_of: Config, make_artifact: Make) -> None:
    with_sets, without = Answering(make_artifact), Answering(make_artifact)
    chain(config_of(), with_sets)
    chain(config_of({"evaluate.sets": []}), without)
    rest = [order for order in with_sets.orders if order not in with_sets.of_the_set()]
    assert [order.jobs for order in rest] == [order.jobs for order in without.orders]


def test_a_record_keeps_what_sets_said(config_of: Config, make_artifact: Make) -> None:
    run = chain(config_of(), Answering(make_artifact))
    directory = run.config.directory
    directory.mkdir(parents=True)
    save_run(run, directory)
    again = load_run(directory)
    assert {name: prompts.id for name, prompts in again.set_prompts.items()} == {"hard": run.set_prompts["hard"].id}
    for before, after in zip(run.iterations, again.iterations, strict=True):
        assert {n: a.id if a else None for n, a in before.sets["hard"].artifacts.items()} == {
            n: a.id if a else None for n, a in after.sets["hard"].artifacts.items()
        }


def test_figures_of_a_set_are_shown_and_tracked(config_of: Config, make_artifact: Make) -> None:
    run = chain(config_of({"iterations": 3}), Answering(make_artifact))
    rows = status(run)["iterations"]
    assert [row["sets"].get("hard", {}).get("pass_at_1") for row in rows] == [0.25, None, 0.25, 0.25]
    (line,) = [line for line in closing_lines(run) if line.startswith("set:")]
    assert line == "set:       hard: pass@1 25.0 % [10.0, 50.0], greedy – at iteration 3, from 25.0 % at 0"
    run.iterations = [step for step in run.iterations if step.checkpoint is None]
    assert next(iter(points(run))).figures["eval/hard/pass_at_1"] == 0.25


def test_every_artifact_of_a_set_is_one_of_the_run(config_of: Config, make_artifact: Make) -> None:
    run = chain(config_of(), Answering(make_artifact))
    artifacts = status(run)["iterations"][0]["artifacts"]
    assert {"hard sampled", "hard greedy", "hard evaluation"} <= set(artifacts)
    assert set(run.prompts) == {"training prompts", "held-out prompts", "held-out prompts hard"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluate.sets": [OTHER, OTHER]}, "hard is there twice"),
        ({"evaluate.sets": [OTHER | {"k": [1, 3]}]}, "k=3 needs as many samples, and has 2"),
        ({"evaluate.sets": [OTHER | {"solved_by": "math"}]}, "solved_by 'math' is no component of its reward"),
        ({"evaluate.solved_by": "exact"}, "solved_by 'exact' is no component of its reward, which has exact_match"),
        ({"evaluate.sets": [OTHER | {"name": "Hard one"}]}, "evaluate.sets.0.name"),
    ],
)
def test_sets_that_cannot_judge_are_refused(config_of: Config, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        config_of(changes)
    assert said in str(error.value)


def test_check_names_the_prompts_of_every_set(config_of: Config, rollbook: Any, tmp_path: Path) -> None:
    config = config_of().model_dump(mode="json", exclude_none=True)
    Path("small.json").write_text(json.dumps(config), encoding="utf-8")
    said = rollbook("check", "small.json")
    assert "1 for training, 1 held out, 1 in the set hard" in said.out, said
    Path("hard.jsonl").write_text(json.dumps({"question": "train", "answer": "0"}), encoding="utf-8")
    said = rollbook("check", "small.json")
    assert said.status == 2 and "evaluate.sets, hard: 1 questions of hard.jsonl are also in train.jsonl" in said.err
