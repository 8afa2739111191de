"""What a new user meets in the first hour: slips that name their remedy, and figures that say what they can carry."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.commands.console import FILE_WIDTH, StageConsole, answer_console
from pipeline.common.claims import half_width
from tests.flows.conftest import CONFIG

Rollbook = Callable[..., Any]


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("{question}", 'needs quotes: template: "{question}"'),
        ("{question} =", 'needs quotes: template: "{question} ="'),
        ("Q: {question}=", 'needs quotes: template: "Q: {question}="'),
        ("@{question}", 'needs quotes: template: "@{question}"'),
    ],
)
def test_an_unquoted_template_is_answered_with_the_line_as_it_should_be(
    rollbook: Rollbook, project: Path, line: str, remedy: str
) -> None:
    text = yaml.safe_dump({**CONFIG, "data": {**CONFIG["data"], "template": "HERE"}}).replace("HERE", line)
    (project / "run.yaml").write_text(text, encoding="utf-8")
    said = rollbook("check", "run.yaml")
    assert said.status == 2 and remedy in said.err
    mended = remedy.removeprefix("needs quotes: ")
    (project / "run.yaml").write_text(text.replace(f"template: {line}", mended), encoding="utf-8")
    assert rollbook("check", "run.yaml").status == 0


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (("check", "rnu.yaml"), "rnu.yaml: no such config file. Did you mean run.yaml?"),
        (("check", "run"), "run: no such config file. Did you mean run.yaml?"),
        (("run", "."), ".: a directory, and not a run's YAML file. Did you mean run.yaml?"),
        (("check", "run.yaml", "--set", "model.path=./modle"), "model.path: no directory ./modle. Did you mean model?"),
        (("check", "run.yaml", "--set", "data.train.path=trian.jsonl"), "no such file or directory. Did you mean train.jsonl?"),
        *(
            ((command, "run.yaml"), "a config; its run is the directory runs/small, which `rollbook run run.yaml` begins")
            for command in ("status", "report", "show", "audit", "lineage", "diff run.yaml")
            if " " not in command
        ),
    ],
    ids=str,
)
def test_a_slip_names_what_was_meant(rollbook: Rollbook, project: Path, command: tuple[str, ...], remedy: str) -> None:
    said = rollbook(*command)
    assert said.status == 2 and remedy in said.err and "Traceback" not in said.err


def test_few_held_out_questions_are_said_with_how_wide_that_is(rollbook: Rollbook, project: Path) -> None:
    assert (
        "warning    1 held-out question: an accuracy of them is known to ±50 points; ±10 takes 97"
        in rollbook("check", "run.yaml").out
    )
    rows = "".join(json.dumps({"question": f"{number}+2", "answer": "4"}) + "\n" for number in range(100))
    (project / "heldout.jsonl").write_text(rows, encoding="utf-8")
    assert half_width(100) < 0.1 and "held-out question" not in rollbook("check", "run.yaml").out.partition("warning")[2]


def test_answers_through_a_pipe_are_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.isatty", lambda handle: False)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setenv("COLUMNS", "77")
        assert answer_console(file=file).width == 77
        monkeypatch.delenv("COLUMNS")
        assert answer_console(file=file).width == FILE_WIDTH
        monkeypatch.setattr("os.isatty", lambda handle: True)
        monkeypatch.setattr("os.get_terminal_size", lambda *handle: os.terminal_size((91, 20)))
        assert answer_console(file=file).width == 91  # a pager in a terminal


def test_the_start_of_the_engine_is_told_apart_from_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    console = StageConsole(Console())
    console.tell("generate 0", {"event": "started"})
    console._started["generate 0"] -= 46.9
    console.tell("generate 0", {"event": "finished", "seconds": 18.0})
    assert " ".join(capsys.readouterr().out.split()) == "✓ generate 0 18.0 s, after 28.9 s to start"
    console.tell("generate 1", {"event": "started"})
    console._started["generate 1"] -= 46.9
    console.tell("generate 1", {"event": "ready"})
    console.tell("generate 1", {"event": "finished", "seconds": 46.9})
    assert " ".join(capsys.readouterr().out.split()) == "✓ generate 1 46.9 s; 46.9 s of them the engine's start"
