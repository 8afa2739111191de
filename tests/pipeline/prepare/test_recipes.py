"""The recipes: each is sound, and what `rollbook init` makes of one is the method with the user's own parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError
from pipeline.config.course import Course
from pipeline.config.load import load_config
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
