"""Turns of an episode as they are shown: who spoke stands where no text can stand, whatever a tool or a model wrote."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.padding import Padding
from rich.text import Text

from pipeline.config.run import RunConfig
from pipeline.look.report.episodes import by_number, episode_panels, turn_panels
from pipeline.look.report.examples import read_examples
from pipeline.look.show.completions import ShownRollouts, select
from pipeline.look.show.query import Query
from pipeline.look.show.tokens import GIVEN, advantage_style, spoken
from pipeline.look.view.parts import ViewPart
from pipeline.look.view.pool import RowPool
from pipeline.look.view.shading import ShadedText, shaded
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Store, read_table
from schemas import Credits, Shaped, Turns

spec = importlib.util.spec_from_file_location("look_conftest", Path(__file__).with_name("conftest.py"))
assert spec is not None and spec.loader is not None
by_hand = importlib.util.module_from_spec(spec)
spec.loader.exec_module(by_hand)

HOSTILE = by_hand.HOSTILE_RESULT


def test_the_terminal_says_who_spoke_further_out_than_any_text(played: tuple[Artifact, Artifact], rollbook: Any) -> None:
    status, out, _ = rollbook("show", played[1].path, "--full", "--prompt", "train-0")
    assert status == 0
    lines = out.splitlines()
    labels = [line.strip() for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert labels == ["Q0", "policy, reward 0.5", "tool calc ulator‹U+001B›[31m, tool_error", "policy, reward 1", "two words"]
    assert "    policy, reward 9" in [line.rstrip() for line in lines]
    assert "\x1b" not in out and "\u202e" not in out


def test_machines_are_given_the_turns(played: tuple[Artifact, Artifact], rollbook: Any) -> None:
    rows = json.loads(rollbook("show", played[1].path, "--json", "--prompt", "train-0")[1])["rows"]
    assert [turn["who"] for turn in rows[0]["turns"]] == ["policy", "tool", "policy"] and "turns" not in rows[1]
    assert rows[0]["logprob"] == -0.5


def test_the_report_says_who_spoke_beside_the_pieces(
    played: tuple[Artifact, Artifact], make_config: Callable[..., RunConfig]
) -> None:
    policy, rollouts = played
    run = Run(make_config(), None, None, [Iteration(0, policy, Answers(rollouts, None, rollouts), None)])  # type: ignore[arg-type]
    examples = read_examples(run)
    assert examples is not None
    episode = next(one for one in examples.shown if any(token.speaker for token in one.tokens))
    speakers = [token.text for token in episode.tokens if token.speaker]
    assert speakers == ["policy, reward 0.5", "tool calc ulator\x1b[31m, tool_error", "policy, reward 1"]
    assert "".join(token.text for token in episode.tokens if not token.speaker) == "[1+0]" + HOSTILE + "1"
    assert dict(episode.facts)["mean logprob"] == "-0.5"


@pytest.fixture
def credited(played: tuple[Artifact, Artifact]) -> Artifact:
    """The shaped table of the episode: its first turn earned something, its last carries no loss."""
    rollouts = played[1]
    beside = Store(rollouts.path.parent.parent)
    key = {"group_id": read_table(rollouts, Turns)["group_id"][0], "sample_index": 0}
    shaped = [{**key, "advantage": -0.25, "weight": 1.0, "keep": True, "drop_reason": None}]
    credits = [
        {**key, "turn": 0, "start": 0, "length": 5, "advantage": 0.75, "keep": True},
        {**key, "turn": 2, "start": 5 + len(HOSTILE.encode()), "length": 1, "advantage": 0.0, "keep": False},
    ]
    files = {"part-00000.parquet": (Shaped, shaped), "credits-00000.parquet": (Credits, credits)}
    return by_hand.made(beside, "shaped", "shape/1", files, {"rollouts": rollouts})  # type: ignore[no-any-return]


def test_the_terminal_says_what_a_turn_earned(played: tuple[Artifact, Artifact], credited: Artifact, rollbook: Any) -> None:
    lines = rollbook("show", played[1].path, "--full", "--prompt", "train-0")[1].splitlines()
    labels = [line.strip() for line in lines if line.startswith("  policy")]
    assert labels == ["policy, reward 0.5, advantage +0.75", "policy, reward 1, carries no loss"]
    rows = json.loads(rollbook("show", played[1].path, "--json", "--prompt", "train-0")[1])["rows"]
    assert [(turn["advantage"], turn["keep"]) for turn in rows[0]["turns"]] == [(0.75, True), (None, None), (0.0, False)]
    assert rows[0]["advantage"] == -0.25


def test_tokens_are_colored_by_the_advantage_of_their_turn(played: tuple[Artifact, Artifact], credited: Artifact) -> None:
    part = ShownRollouts(played[1], "rollouts", credited, played[0])
    episode = select([part], Query(prompt="train-0")).shown[0]
    texts = [piece.renderable for piece in spoken(episode, "advantage") if isinstance(piece, Padding)]
    styles = [{str(span.style) for span in text.spans} for text in texts if isinstance(text, Text)][1::2]
    assert styles == [{advantage_style(0.75)}, {GIVEN}, set()]
    (first, *_), *_ = (turn.pieces for turn in shaded_episode(part).turns if turn.who == "policy")
    assert (first.look, first.hint.partition(";")[0]) == ("up2", "advantage 0.75")


def shaded_episode(part: ShownRollouts) -> ShadedText:
    beside = ViewPart(part.rollouts, "here", part.name, 0, part.policy, part.shaped)
    row = next(row for row in RowPool([beside]).group(0, "train-0@01234567") if row["turns"])
    return shaded(row, beside, "advantage")


def test_the_report_tells_turns_apart_by_their_number(
    played: tuple[Artifact, Artifact], credited: Artifact, make_config: Callable[..., RunConfig]
) -> None:
    policy, rollouts = played
    step = Iteration(0, policy, Answers(rollouts, None, rollouts), None, shaped=credited)  # type: ignore[arg-type]
    assert by_number(step).sort("k").to_dicts() == [
        {"k": 1, "tokens": 5.0, "reached": 1.0, "rewarded": 1.0, "failed": 0.0, "credited": 1.0},
        {"k": 2, "tokens": 1.0, "reached": 1.0, "rewarded": 1.0, "failed": 0.0, "credited": 0.0},
    ]
    lengths, shares = turn_panels(Run(make_config(), None, None, [step]))  # type: ignore[arg-type]
    assert [key.label for key in lengths.keys] == ["iteration 0"]
    assert [key.label for key in shares.keys][-1] == "with an advantage other than 0"
    bare = Iteration(0, policy, Answers(rollouts, None, rollouts), None)  # type: ignore[arg-type]
    assert "credited" not in by_number(bare).columns


def test_the_report_draws_turns_and_calls_of_runs_with_an_environment(
    store: Store, make_artifact: Any, make_config: Callable[..., RunConfig]
) -> None:
    counted = {"turns": 12, "calls": 4, "tool_errors": 1, "drawn_tokens": 80, "given_tokens": 16}
    statuses = {"ok": 10, "turn_limit": 2}
    episodes = {"completions": 8, "episodes": {**counted, "turn_statuses": statuses}}
    steps = []
    for number in (0, 1):
        answers = Answers(None, None, make_artifact("rollouts", n=number, **episodes))  # type: ignore[arg-type]
        steps.append(Iteration(number, make_artifact("checkpoint", n=number), answers, None))
    turns, tokens = episode_panels(Run(make_config(), None, None, steps))  # type: ignore[arg-type]
    assert [key.label for key in turns.keys] == ["turns", "calls", "calls that failed"]
    assert turns.caption == "Means of the training rollouts. Turns of the last iteration: 2 turn_limit."
    assert [key.label for key in tokens.keys] == ["drawn by the policy", "from the environment"]
    bare = Iteration(0, steps[0].policy, Answers(None, None, make_artifact("rollouts", n=9)), None)  # type: ignore[arg-type]
    assert episode_panels(Run(make_config(), None, None, [bare])) == []  # type: ignore[arg-type]
