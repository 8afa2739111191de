"""Turns of an episode as they are shown: who spoke stands where no text can stand, whatever a tool or a model wrote."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.look.report.episodes import episode_panels
from pipeline.look.report.examples import read_examples
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Store

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
