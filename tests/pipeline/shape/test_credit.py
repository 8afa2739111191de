"""Advantages and masks of turns, worked by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.config.shape import ShapeConfig
from pipeline.run.process import Reporter
from pipeline.shape.order import shape_request
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Store, read_table
from pipeline.store.store import load_artifact
from schemas import Credits, Shaped

MakeRollouts = Callable[..., Artifact]
Run = Callable[..., Artifact]
GRADED = [{"grader": "environment", "weight": 1.0}]
FILES = {"part-00000.parquet": {"a": [("ok", 1.5), ("ok", 0.0), ("ok", 1.0)]}}
TURNS = {
    "a 0": [("policy", 1, 0.5, "ok"), ("policy", 1, None, "ok")],
    "a 1": [("policy", 1, None, "ok"), ("tool", 1, None, "ok"), ("policy", 1, None, "void")],
    "a 2": [("policy", 4, 1.0, "ok")],
}
MASKS = {"a 1": [True, False, True]}


@pytest.fixture
def run(store: Store, make_config: Callable[..., RunConfig]) -> Run:
    """run(rollouts, algorithm, **choices): the shaped artifact."""

    def make(rollouts: Artifact, algorithm: str = "reinforce", **choices: Any) -> Artifact:
        train = {"algorithm": algorithm, "algorithm_args": {}}
        config = make_config({"train": train, "shape": choices})
        request = shape_request(config, 0, rollouts).to_json()
        spec = {"store": str(store.root), "request": request, "rollouts": str(rollouts.path), **train}
        spec["shape"] = config.shape.model_dump(mode="json")
        return load_artifact(shape(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])

    return make


@pytest.fixture
def episodes(make_rollouts: MakeRollouts) -> Artifact:
    return make_rollouts(FILES, masks=MASKS, turns=TURNS, reward=GRADED)


def credits(shaped: Artifact) -> list[tuple[int, int, float]]:
    """Sample, start and advantage of each turn."""
    rows = read_table(shaped, Credits).select("sample_index", "start", "advantage").rows()
    return [(sample, start, round(advantage, 4)) for sample, start, advantage in rows]


def test_turns_are_compared_with_those_of_the_same_number(episodes: Artifact, run: Run) -> None:
    """Returns 1.5, 1; 0, 0; 1. Means .8333 of the first turns and .5 of the second; the row has the mean over its tokens."""
    shaped = run(episodes, credit="turn")
    assert credits(shaped) == [(0, 0, 0.6667), (0, 1, 0.5), (1, 0, -0.8333), (1, 2, -0.5), (2, 0, 0.1667)]
    assert read_table(shaped, Shaped)["advantage"].to_list() == pytest.approx([0.58333, -0.66667, 0.16667], abs=1e-4)
    shaped.verify()


def test_later_rewards_are_discounted(episodes: Artifact, run: Run) -> None:
    """With 0.5: returns 0.5 + 0.5 * 1 = 1, 1; 0, 0; 1. Means .6667 and .5."""
    assert credits(run(episodes, credit="turn", discount=0.5)) == [
        (0, 0, 0.3333), (0, 1, 0.5), (1, 0, -0.6667), (1, 2, -0.5), (2, 0, 0.3333),
    ]  # fmt: skip


def test_rewards_that_no_grader_reads_are_no_turns(make_rollouts: MakeRollouts, run: Run) -> None:
    """Graded by something else, all of the reward is the last turn's: returns .75, 1.5; 0, 0; 1 with a discount of 0.5."""
    found = credits(run(make_rollouts(FILES, masks=MASKS, turns=TURNS), credit="turn", discount=0.5))
    assert found == [(0, 0, 0.1667), (0, 1, 0.75), (1, 0, -0.5833), (1, 2, -0.75), (2, 0, 0.4167)]


def test_what_has_no_turns_is_one_turn(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    shaped = run(rollouts, credit="turn")
    rows = read_table(shaped, Credits)
    assert rows.select("turn", "start", "length").rows() == [(0, 0, 2), (0, 0, 3), (0, 0, 4)]
    assert rows["advantage"].to_list() == read_table(run(rollouts), Shaped)["advantage"].to_list()


def test_a_void_turn_is_masked_or_its_episode_is_left_out(episodes: Artifact, run: Run) -> None:
    """Rewards 1.5, 0 and 1 have the mean .8333, dropped or not."""
    dropped = read_table(run(episodes, void_turns="drop"), Shaped)
    assert dropped["drop_reason"].to_list() == [None, "void_turn", None]
    assert dropped["advantage"].to_list() == pytest.approx([0.66667, 0.0, 0.16667], abs=1e-4)
    masked = run(episodes, void_turns="mask")
    assert read_table(masked, Credits)["keep"].to_list() == [True, True, True, False, True]
    assert credits(masked) == [(0, 0, 0.6667), (0, 1, 0.6667), (1, 0, -0.8333), (1, 2, 0.0), (2, 0, 0.1667)]
    assert read_table(masked, Shaped)["advantage"].to_list() == pytest.approx([0.66667, -0.83333, 0.16667], abs=1e-4)


def test_moments_weigh_the_turns_that_count(episodes: Artifact, run: Run) -> None:
    """Reinforce++: 1.5 twice, 0 once (the tool's and the void turn's do not count), 1 four times: mean 1, std .46291."""
    found = credits(run(episodes, "reinforce++", void_turns="mask"))
    assert found == [(0, 0, 1.0801), (0, 1, 1.0801), (1, 0, -2.1602), (1, 2, 0.0), (2, 0, 0.0)]


def test_cuts_are_told_apart(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts({"part-00000.parquet": {"a": [("ok", 1.0), ("truncated", 0.0)]}})
    assert read_table(run(rollouts, truncated="drop"), Shaped)["drop_reason"].to_list() == [None, "truncated"]
    kept = read_table(run(rollouts, truncated="drop", truncated_by=["turns", "context"]), Shaped)
    assert kept["drop_reason"].to_list() == [None, None]


def test_recipes_say_nothing_of_turns_where_nothing_is_set(episodes: Artifact, make_config: Callable[..., RunConfig]) -> None:
    choices = shape_request(make_config({}), 0, episodes).recipe["choices"]
    assert not {"credit", "discount", "void_turns", "truncated_by"} & set(choices)


@pytest.mark.parametrize("choices", [{"credit": "turn"}, {"void_turns": "mask"}])
def test_methods_that_take_completions_whole_are_refused(episodes: Artifact, run: Run, choices: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"shape.{next(iter(choices))}: dpo takes completions whole"):
        run(episodes, "dpo", **choices)


@pytest.mark.parametrize("choices", [{"discount": 0.9}, {"truncated_by": ["turns"]}])
def test_settings_that_would_do_nothing_are_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"set credit: turn|truncated: keep does nothing"):
        ShapeConfig.model_validate(choices)
