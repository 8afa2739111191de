"""What a comparison is asked for: which texts name algorithms, which trials follow, and what all of them share."""

from __future__ import annotations

import doctest
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.compare import choices
from pipeline.compare.choices import parse_choices
from pipeline.compare.plan import Plan, find_snapshot, make_plan
from pipeline.generate.order import heldout_request
from pipeline.run.parts import Part
from pipeline.store import Request, Work
from pipeline.train.order import train_request

Synthetic = Callable[..., Any]


@pytest.fixture(scope="module")
def run(make_synthetic: Synthetic) -> Any:
    synthetic = make_synthetic()
    synthetic.save_run()
    return synthetic


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(choices) == (0, 2)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["grpo"], [("grpo", "grpo", {})]),
        ([" grpo , reinforce "], [("grpo", "grpo", {}), ("reinforce", "reinforce", {})]),
        (["grpo", "reinforce"], [("grpo", "grpo", {}), ("reinforce", "reinforce", {})]),
        (["grpo:low=0.1, high=2"], [("grpo:low=0.1,high=2", "grpo", {"low": 0.1, "high": 2})]),
        (["grpo:low=0.1,grpo:low=0.3"], [("grpo:low=0.1", "grpo", {"low": 0.1}), ("grpo:low=0.3", "grpo", {"low": 0.3})]),
        (["grpo:trust_region.low=1e-1"], [("grpo:trust_region.low=1e-1", "grpo", {"trust_region.low": "1e-1"})]),
        (
            ["grpo:regularizers=[EntropyBonus, ForwardKL],regularizers.0.coefficient=0.1,reinforce"],
            [
                (
                    "grpo:regularizers=[EntropyBonus, ForwardKL],regularizers.0.coefficient=0.1",
                    "grpo",
                    {"regularizers": ["EntropyBonus", "ForwardKL"], "regularizers.0.coefficient": 0.1},
                ),
                ("reinforce", "reinforce", {}),
            ],
        ),
        (["a*-po,reinforce++"], [("a*-po", "a*-po", {}), ("reinforce++", "reinforce++", {})]),
    ],
    ids=str,
)
def test_algorithms_are_named_by_texts(texts: list[str], expected: list[Any]) -> None:
    assert [(choice.label, choice.name, choice.settings) for choice in parse_choices(texts)] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--algorithms: name at least one"),
        ("gpro", "no algorithm 'gpro'; did you mean"),
        ("grpo,gpro", "no algorithm 'gpro'"),
        ("grpo:trust_region.level=geometric", "trust_region.level: grpo: the surrogate form clips tokens on one side"),
        ("grpo:lo=1", "grpo has no setting 'lo'"),
        ("grpo:low=much", "low: Input should be a valid number"),
        ("grpo:low", "expected setting=value after the colon, such as grpo:low=0.1"),
        ("low=0.1", "low=0.1 follows no algorithm"),
        ("grpo,reinforce,grpo", "grpo is there twice"),
        ("grpo:low=[1", "'[1' is not a value"),
    ],
)
def test_a_text_that_names_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_choices([text])
    assert said in str(refusal.value)


def test_every_algorithm_has_its_first_seed_before_any_has_its_second(run: Any) -> None:
    plan = make_plan(run.root, ["grpo,reinforce"], seeds=2)
    assert [(v.choice.label, v.seed, v.epochs) for v in plan.variants()] == [
        ("grpo", 7, 3),
        ("reinforce", 7, 3),
        ("grpo", 8, 3),
        ("reinforce", 8, 3),
    ]


def test_a_curve_has_a_trial_after_every_epoch(run: Any) -> None:
    plan = make_plan(run.root, ["grpo"], overrides=["train.epochs=2"], curve=True)
    assert [v.epochs for v in plan.variants()] == [1, 2]
    assert [plan.training(v).train.epochs for v in plan.variants()] == [1, 2]


def test_seeds_vary_the_training_and_not_the_judgment(run: Any) -> None:
    plan = make_plan(run.root, ["grpo,reinforce"], seeds=3)
    policy, heldout = plan.snapshot.policy, plan.snapshot.heldout
    keys = {heldout_request(plan.judging(variant), policy, heldout, greedy=False).key for variant in [*plan.variants(), None]}
    assert keys == {heldout_request(run.config, policy, heldout, greedy=False).key}
    assert sorted({plan.training(variant).seed for variant in plan.variants()}) == [7, 8, 9]


def test_the_first_trial_of_the_runs_own_algorithm_is_the_runs_own_training(run: Any) -> None:
    plan = make_plan(run.root, ["rec-oneside-nois"], seeds=2)
    parents = (plan.snapshot.policy, [Part(plan.snapshot.rollouts, plan.snapshot.rollouts)])
    own = train_request(run.config, 0, *parents).key
    assert [train_request(plan.training(v), 0, *parents).key == own for v in plan.variants()] == [True, False]


def test_a_snapshot_is_found_by_its_run_or_by_its_rollouts(run: Any) -> None:
    by_run = make_plan(run.root, ["grpo"]).snapshot
    by_rollouts = make_plan(run.rollouts.path, ["grpo"]).snapshot
    assert by_run.rollouts.id == by_rollouts.rollouts.id == run.rollouts.id
    assert by_rollouts.directory == run.root
    assert by_run.iteration == by_rollouts.iteration == 0


def test_a_run_that_was_moved_is_compared_where_it_lies(run: Any, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "moved")
    plan = make_plan(tmp_path / "moved", ["grpo"])
    assert plan.snapshot.store.root.resolve() == (tmp_path / "moved" / "artifacts").resolve()
    assert plan.directory.is_relative_to(tmp_path / "moved")


@pytest.mark.parametrize(
    ("place", "changes", "said"),
    [
        ("nowhere", {}, "nowhere: no run there"),
        (".", {"iteration": 2}, "no training rollouts of iteration 2; it has those of 0"),
        ("artifacts/rollouts/train", {"iteration": 1}, "the rollouts of iteration 0, not of 1"),
        ("artifacts/rollouts/sampled", {}, "is not the training rollouts of an iteration"),
        (".", {"overrides": ["generate.samples=3"]}, "--set generate: part of the run that is compared on"),
        (".", {"overrides": ["seed=3"]}, "--set seed: part of the run"),
        (".", {"overrides": ["train.algorithm=grpo"]}, "--set train.algorithm: name algorithms"),
        (".", {"overrides": ["train.epoch=3"]}, "train.epoch: unknown key; did you mean `epochs`?"),
        (".", {"curve": True, "overrides": ["train.schedule=cosine"]}, "with train.schedule=cosine a training of fewer epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Any, place: str, changes: dict[str, Any], said: str) -> None:
    names = {"train": run.rollouts.path, "sampled": run.before.answers.sampled.path}
    with pytest.raises(UserError) as refusal:
        make_plan(names.get(Path(place).name, run.root / place), ["grpo"], **changes)
    assert said in str(refusal.value)


def test_settings_that_all_trials_share_may_be_changed(run: Any) -> None:
    overrides = ["train.learning_rate=1e-3", "shape.min_group=2", "evaluate.samples=2", "engine.max_num_seqs=4"]
    plan: Plan = make_plan(run.root, ["grpo"], overrides=overrides)
    (variant,) = plan.variants()
    assert plan.training(variant).train.learning_rate == 1e-3
    assert plan.judging(variant).evaluate.samples == 2


def test_logs_of_trials_lie_apart_below_the_run(run: Any) -> None:
    plan = make_plan(run.root, ["grpo,a*-po,grpo:low=0.1"])
    places = {plan.judging(variant).directory for variant in [*plan.variants(), None]}
    assert len(places) == 4
    assert all(place.parent == plan.directory and place.is_relative_to(run.root / "comparisons") for place in places)


def test_rollouts_that_were_graded_again_belong_to_the_iteration_they_come_from(run: Any) -> None:
    """Also those graded twice. They are trained on in place of the iteration's own."""
    stored = run.rollouts
    parents = [stored]
    for name in ("once", "twice"):
        request = Request("rollouts", "grade/1", {"name": name}, (parents[-1].as_parent("graded"),))
        with run.store.work(request) as work:
            parents.append(work.finish({}) if isinstance(work, Work) else work)
    for graded in parents[1:]:
        snapshot = find_snapshot(graded.path, None)
        assert (snapshot.iteration, snapshot.rollouts.id) == (0, graded.id)
    assert find_snapshot(stored.path, None).rollouts.id == stored.id
