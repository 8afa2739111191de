"""A learned reward beside the true grader, on runs made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.look.report.learned import Graded, beside, learned_section, parting
from pipeline.look.report.page import render
from pipeline.run.state import Run

MODEL = {"grader": "reward_model", "args": {"path": str(Path(__file__).parents[4] / "data" / "base")}}
TRUE = {"grader": "exact_match", "weight": 0}


@pytest.fixture(scope="module")
def gamed(make_run: Callable[..., Run]) -> Run:
    """The reward model's score rises by 0.5 an iteration; of four prompts 2, 4 and 1 are solved."""
    return make_run(reward={"components": [MODEL, TRUE]})


def scores(*by_iteration: list[float]) -> dict[int, pl.DataFrame]:
    return {
        number: pl.DataFrame({"prompt_id": [f"p{n}" for n in range(len(values))], "score": values})
        for number, values in enumerate(by_iteration)
    }


def test_both_are_read_from_the_same_held_out_answers(gamed: Run) -> None:
    learned, (true,) = beside(gamed) or pytest.fail("nothing beside it")
    assert (learned.name, true.name) == ("reward_model", "exact_match")
    assert list(learned.means.values()) == pytest.approx([0.95, 1.45, 1.95], abs=1e-9)  # 0.1 x 9.5 + 0.5 an iteration
    assert list(true.means.values()) == pytest.approx([0.5, 1.0, 0.25])


def test_a_reward_that_rises_while_the_truth_falls_is_told_in_words(gamed: Run) -> None:
    section, says = learned_section(gamed) or pytest.fail("no section")
    assert says.way == "down" and section.notes == (says.says,)
    assert says.says.startswith("The learned reward is being gamed: from iteration 1 to iteration 2 reward_model rose by +0.5 [")
    assert "while exact_match fell by -0.75 [" in says.says and "By the true grader iteration 1 is the best." in says.says
    assert [panel.title for panel in section.panels] == ["Learned reward", "True grader"]
    page = render(gamed)
    assert page.count("The learned reward is being gamed") == 2  # at the top, and beside the curves
    assert 'class="verdict down"' in page and 'href="#learned-reward"' in page


def test_both_that_rise_have_not_parted(run: Run) -> None:
    learned = Graded("reward_model", scores([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]))
    true = Graded("regex", scores([0.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 0.0]))
    says = parting(run, learned, [true])
    assert says.way == "even"
    assert says.says.startswith(
        "The learned reward and the true grader have not parted: reward_model rose (+1 [+1, +1]); regex rose ("
    )


def test_a_fall_that_may_be_chance_is_not_called_one(run: Run) -> None:
    learned = Graded("reward_model", scores([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]))
    true = Graded("regex", scores([1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]))
    says = parting(run, learned, [true])
    assert says.way == "even" and "regex is not known to have changed (-0.25 [" in says.says


def test_changes_are_over_prompts_that_both_were_graded_on(run: Run) -> None:
    graded = Graded("regex", scores([0.0, 0.0], [1.0, 1.0]))
    graded.scores[1] = pl.DataFrame({"prompt_id": ["p1", "p7"], "score": [0.25, 1.0]})
    change = graded.change(0, 1, run)
    assert change is not None and change.by == 0.25
    assert graded.change(0, 2, run) is None


@pytest.mark.parametrize(
    "components",
    [[{"grader": "exact_match"}], [MODEL], [{**MODEL, "weight": 0}, {"grader": "exact_match"}]],
)
def test_without_a_learned_reward_or_a_check_of_it_there_is_no_section(gamed: Run, components: list[dict[str, Any]]) -> None:
    reward = type(gamed.config.reward).model_validate({"components": components})
    assert learned_section(replace(gamed, config=gamed.config.model_copy(update={"reward": reward}))) is None


def test_the_component_that_decides_what_is_solved_is_a_check_too(gamed: Run) -> None:
    reward = type(gamed.config.reward).model_validate({"components": [MODEL, {"grader": "exact_match", "weight": 0.1}]})
    evaluate = gamed.config.evaluate.model_copy(update={"solved_by": "exact_match"})
    config = gamed.config.model_copy(update={"reward": reward, "evaluate": evaluate})
    _, (true,) = beside(replace(gamed, config=config)) or pytest.fail("nothing beside it")
    assert list(true.means.values()) == pytest.approx([0.5, 1.0, 0.25])
