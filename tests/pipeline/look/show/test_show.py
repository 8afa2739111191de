"""Looking at completions and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.store import Request, Store, Work, read_table
from pipeline.store.store import load_artifact
from schemas import Shaped

Rollbook = Callable[..., tuple[int, str, str]]
HARMFUL = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e"} - {"\n"}


def rows(rollbook: Rollbook, *command: object) -> list[tuple[str, int]]:
    """Prompt and sample of the completions that are shown."""
    status, out, err = rollbook("show", *command, "--json")
    assert (status, err) == (0, "")
    return [(row["prompt_id"], row["sample_index"]) for row in json.loads(out)["rows"]]


def test_a_run_opens_on_its_newest_rollouts_best_and_worst(rollbook: Rollbook, finished: Path) -> None:
    status, out, err = rollbook("show", finished)
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "iteration 0, highest rewards"
    assert lines[3:5] == ["0 train-0 0 1 0.5 1 ok 1", "0 train-1 0 1 0.5 1 ok 1"]
    assert lines[6] == "iteration 0, lowest rewards"
    assert lines[9] == "0 train-0 1 0 -0.5 9 ok two words"
    assert lines[-1].startswith("4 completions of iteration 0, mean reward 0.5; ")
    assert [line for line in rollbook("show", finished, "-n", 2)[1].splitlines() if "train-" in line] == [
        line for line in out.splitlines() if "train-0" in line
    ]


def test_a_run_shows_its_training_rollouts_with_their_advantages(rollbook: Rollbook, finished: Path) -> None:
    status, out, err = rollbook("show", finished, "-i", 0)
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "iter prompt n reward adv tokens status completion"
    assert lines[2:4] == ["0 train-0 0 1 0.5 1 ok 1", "0 train-0 1 0 -0.5 9 ok two words"]
    assert lines[-1] == "4 completions, mean reward 0.5"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--reward", ">0.5"), [("train-0", 0), ("train-1", 0)]),
        (("--reward", ">=0,<1"), [("train-0", 1), ("train-1", 1)]),
        (("--status", "truncated"), [("train-1", 1)]),
        (("--contains", "words"), [("train-0", 1)]),
        (("--prompt", "train-1"), [("train-1", 0), ("train-1", 1)]),
        (("--prompt", "train-0@01234567"), [("train-0", 0), ("train-0", 1)]),
        (("--prompt", "Q1", "--reward", "0"), [("train-1", 1)]),
        (("--prompt", "held-0", "-i", "1"), [("held-0", 0), ("held-0", 1)]),
        (("--of", "sampled", "-i", "1", "-n", "1"), [("held-0", 0)]),
        (("--sort", "-tokens", "-n", "1"), [("train-1", 1)]),
        (("--sort", "advantage", "-n", "2"), [("train-0", 1), ("train-1", 1)]),
        (("--iteration", "1"), []),
    ],
    ids=str,
)
def test_filters_and_orders(rollbook: Rollbook, finished: Path, options: tuple[str, ...], found: list[tuple[str, int]]) -> None:
    assert rows(rollbook, finished, *options) == found


def test_an_artifact_alone_shows_the_same(rollbook: Rollbook, finished: Path, parts: dict[str, Path]) -> None:
    assert rows(rollbook, parts["rollouts"]) == rows(rollbook, finished)
    assert rows(rollbook, finished / "artifacts", "--prompt", "train-0") == [("train-0", 0), ("train-0", 1)]


def test_what_a_model_wrote_cannot_reach_the_terminal(rollbook: Rollbook, finished: Path) -> None:
    for options in ((), ("--full",), ("--full", "--color", "advantage"), ("--full", "--color", "none"), ("--json",)):
        _, out, _ = rollbook("show", finished, *options)
        assert not HARMFUL & set(out), options
    assert "‹U+001B›[2J‹U+001B›]0;title‹U+0007›‹U+202E›txt.exe‹U+009B›31m 3" in rollbook("show", finished, "--full")[1]


def test_tokens_are_colored(rollbook: Rollbook, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(-0.5) = 0.61 is of the second shade, cyan; the advantage 0.5 of the second green, -0.5 of the second red."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    _, out, _ = rollbook("show", finished, "--prompt", "train-0")
    assert "\x1b[36m1\x1b[0m" in out and "\x1b[36mw\x1b[0m\x1b[36mo\x1b[0m" in out
    _, out, _ = rollbook("show", finished, "--prompt", "train-0", "--color", "advantage")
    assert "\x1b[38;5;40m1\x1b[0m" in out and "\x1b[38;5;196mw\x1b[0m" in out


def test_two_iterations_stand_side_by_side(rollbook: Rollbook, finished: Path) -> None:
    status, out, err = rollbook("show", finished, "--prompt", "held-0", "-i", "0", "-i", "1")
    assert (status, err) == (0, "")
    assert " ".join(out.splitlines()[2].split()) == "iteration 0, sampled iteration 1, sampled"
    assert "mean logprob -0.5 " in out and "mean logprob -1 " in out
    status, _, err = rollbook("show", finished, "--prompt", "train-0", "-i", "0", "-i", "1")
    assert status == 2 and "was not answered in both iterations" in err


def test_any_table_can_be_looked_at(rollbook: Rollbook, finished: Path, parts: dict[str, Path]) -> None:
    _, out, _ = rollbook("show", finished, "--table", "prompts")
    assert out.count("1 of 1 rows of prompts") == 2
    _, out, _ = rollbook("show", parts["shaped"], "-n", "1")
    assert "1 of 4 rows of shaped" in out and "train-0@01234567" in out
    _, out, _ = rollbook("show", parts["evaluation 1"], "--json")
    assert json.loads(out)[0]["rows"][0]["solved"] is False
    _, out, _ = rollbook("show", parts["policy 0"])
    assert "tokenizer.json" in out
    _, out, _ = rollbook("show", finished / "artifacts")
    assert [line.split()[0].split("/")[0] for line in out.splitlines()[2:]].count("rollouts") == 3


def test_of_several_shaped_tables_none_is_taken(rollbook: Rollbook, parts: dict[str, Path]) -> None:
    store = Store(parts["shaped"].parent.parent)
    first = load_artifact(parts["shaped"])
    with store.work(Request("shaped", "shape/1", {"other": 1}, first.manifest.content.parents)) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", read_table(first, Shaped).with_columns(advantage=pl.lit(7.0, pl.Float32)), Shaped)
        other = work.finish({})
    _, out, _ = rollbook("show", parts["rollouts"])
    assert "no advantages: 2 shaped tables were made from" in out and "name one with --shaped" in out
    status, out, _ = rollbook("show", parts["rollouts"], "--shaped", other.path, "--json")
    assert [row["advantage"] for row in json.loads(out)["rows"]] == [7.0] * 4
    status, _, err = rollbook("show", parts["sampled 0"], "--shaped", other.path)
    assert status == 2 and "not one that was made from these rollouts" in err
