"""The recipes: each is sound, and what `rollbook init` makes of one is the method with the user's own parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError
from pipeline.config.course import Course
from pipeline.config.load import load_config
from pipeline.config.run import RunConfig
from pipeline.prepare.check import check_algorithms
from pipeline.prepare.recipes import OWN, RECIPES, recipe_names, recipe_text, with_recipe

ROOT = Path(__file__).parents[3]
USERS = """# mine, written by `rollbook init`.
name: mine
iterations: 9                    # rounds

model:
  path: my/model

data:
  # The files are JSONL.
  train: {path: a.jsonl}
  heldout: {path: b.jsonl}

generate:
  prompts: 5
  max_tokens: 300                # longest
  shard_groups: 16

reward:
  components:
    - {grader: math_verify}

train:
  algorithm: grpo
  learning_rate: 3.0e-6          # change

evaluate:
  samples: 2
"""


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_sound_and_its_algorithms_fit(name: str) -> None:
    config = load_config(RECIPES / f"{name}.yaml")
    assert config.name == name
    assert check_algorithms(config)
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in page


def course_of(name: str) -> Course:
    return Course(load_config(RECIPES / f"{name}.yaml"))


def cells_of(config: RunConfig) -> Any:
    return resolve(config.train.algorithm, config.train.algorithm_args)


def test_remix_mixes_then_is_reincarnated_and_goes_on_with_its_own_data() -> None:
    """Window 2, p = 0.4, two updates a batch; at T the policy becomes its own reference, and training is on policy."""
    course = course_of("remix")
    mixed, after = [course.at(number) for number in (0, 1)], [course.at(number) for number in (2, 3)]
    for config in mixed:
        assert (config.train.algorithm, config.train.epochs) == ("remix", 2)
        assert (config.replay.iterations, config.replay.share) == (2, 0.4)
    for config in after:
        assert (config.train.algorithm, config.train.epochs, config.replay.iterations) == ("grpo", 1, 0)
        assert cells_of(config).regularizers[0].coefficient == 1e-3
    assert [config.reference.version(number) for number, config in enumerate((*mixed, *after))] == [0, 0, 2, 2]
    assert cells_of(mixed[0]).regularizers[0].share == 1.0  # lambda before the paper's step 50


def test_spears_imitation_sets_in_over_the_optimizer_steps_of_the_whole_run() -> None:
    """32 prompts x 8 samples in batches of 64 are 4 steps: gamma = (1 - cos(pi t / 12)) / 2 at t = 0, 4 and 8."""
    course = course_of("spear")
    found = [cells_of(course.at(number)) for number in range(3)]
    assert [cells.advantage.gamma for cells in found] == pytest.approx([0.0, 0.25, 0.75])
    config = course.at(0)
    assert (config.shape.max_age, config.replay.iterations) == (5, 2)
    clip = next(cell for cell in vars_of(found[0]) if type(cell).__name__ == "CovarianceClip")
    assert (clip.share, clip.lower, clip.upper) == (0.02, 1.0, 40.0)


def vars_of(algorithm: Any) -> list[Any]:
    return [getattr(algorithm, field.name) for field in dataclasses.fields(algorithm)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("topr", {"shape.anna_karenina": True, "shape.positive_fraction": 0.15, "train.epochs": 1}),
        ("ipo-md", {"generate.mixture.share": 0.125, "train.algorithm_args": {"tau": 1.0, "soft": 1.0}}),
        ("nash-md", {"generate.mixture.share": 0.125, "train.algorithm_args": {"tau": 0.008, "soft": 1.0}}),
        ("online-ipo", {"generate.mixture": None, "train.algorithm_args": {"tau": 1.0, "soft": 1.0}}),
        ("ipo", {"train.algorithm_args": {"tau": 1.0}, "iterations": 1}),
        ("rec", {"train.algorithm_args": {"low": 0.2, "high": 0.2}, "generate.samples": 8}),
        ("bapo", {"train.epochs": 2, "train.weight_decay": 0.1, "replay.iterations": 1}),
    ],
)
def test_published_settings_are_those_of_the_recipes(name: str, settings: dict[str, Any]) -> None:
    config = load_config(RECIPES / f"{name}.yaml")
    for key, expected in settings.items():
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == expected, key


def test_opa_dpo_makes_corrections_its_own_first() -> None:
    course = course_of("opa-dpo")
    first, then = course.at(0), course.at(1)
    assert all(here.revise.is_on and here.revise.reference for here in (first, then))
    assert (first.train.algorithm, first.train.epochs) == ("raft", 2)
    assert (then.train.algorithm, then.train.epochs, then.replay.iterations) == ("opa-dpo", 4, 1)
    assert load_config(RECIPES / "opa-dpo.yaml").iterations == 2
    cells = cells_of(then)
    assert (cells.margin.reference, cells.weighs_tokens) == ("proximal_logprobs", True)  # the checkpoint of SFT, and weights
    anchor = cells.anchors[0]
    assert (cells.margin.beta, anchor.slope, anchor.coefficient, anchor.offset) == (0.1, 0.1, 1.0, 0.0)


@pytest.mark.parametrize("name", recipe_names())
def test_the_method_comes_from_the_recipe_and_the_rest_from_the_user(name: str, tmp_path: Path) -> None:
    text = with_recipe(USERS, recipe_text(name))
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    made, recipe, users = load_config(tmp_path / "run.yaml"), load_config(RECIPES / f"{name}.yaml"), yaml.safe_load(USERS)
    assert text.startswith("# mine, written by `rollbook init`.\nname: mine\n")
    assert {section: yaml.safe_load(text)[section] for section in OWN} == {section: users[section] for section in OWN}
    assert (made.generate.max_tokens, made.generate.shard_groups, made.train.learning_rate) == (300, 16, 3e-6)
    fitted = {"generate": {"max_tokens", "shard_groups"}, "train": {"learning_rate"}}
    for section in ("iterations", "generate", "shape", "replay", "train", "reference", "phases", "schedules", "stop"):
        ours, theirs = (getattr(one, section) for one in (made, recipe))
        if section in fitted:
            ours, theirs = (one.model_dump(exclude=fitted[section]) for one in (ours, theirs))
        assert ours == theirs, section


def test_remix_mixes_then_takes_a_new_reference_and_goes_on_policy() -> None:
    course = Course(load_config(RECIPES / "remix.yaml"))
    assert [course.at(number).replay.is_on for number in range(4)] == [True, True, False, False]
    assert [course.at(number).train.epochs for number in range(4)] == [2, 2, 1, 1]  # update-to-data
    assert [course.at(number).reference.version(number) for number in range(4)] == [0, 0, 2, 2]  # reincarnation
    here = course.at(2).train
    assert "reference" in " ".join(resolve(here.algorithm, here.algorithm_args).needs)  # the new base is read


def test_a_recipe_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"--recipe tpor: no such recipe; there are bapo, .*topr"):
        recipe_text("tpor")
