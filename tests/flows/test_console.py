"""What a run says while it works: lines in a log, bars on a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from flows.commands import console as room
from flows.commands.console import StageConsole
from pipeline.run.process import Event

Tell = Callable[[str, Event], None]


def said(*events: tuple[str, Event], terminal: bool = False) -> str:
    out = io.StringIO()
    with StageConsole(Console(file=out, width=100, force_terminal=terminal)) as console:
        for stage, event in events:
            console.tell(stage, event)
    return out.getvalue()


def progress(done: int) -> Event:
    return {"event": "progress", "done": done, "total": 64, "unit": "completions", "tokens_per_second": 1234.5}


def test_a_log_has_a_line_per_stage() -> None:
    text = said(
        ("base model", {"event": "found"}),
        ("generate 0", {"event": "started"}),
        ("generate 0", {"event": "note", "message": "starting vLLM"}),
        ("generate 0", progress(8)),
        ("generate 0", {"event": "finished"}),
    )
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "✓ base model       already there"
    assert lines[1] == "generate 0: starting vLLM"
    assert lines[2].startswith("✓ generate 0 ")
    assert lines[2].endswith(" s")
    assert len(lines) == 3, "progress is told every ten seconds, not at once"


def test_progress_is_told_in_a_log_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOG_SECONDS", 0.0)
    text = said(("generate 0", {"event": "started"}), ("generate 0", progress(8)))
    assert text == "generate 0: 8 of 64 completions 1,234 tokens/s\n"


def test_the_speed_of_each_engine_is_told_beside_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOG_SECONDS", 0.0)
    text = said(("generate 0", {"event": "started"}), ("generate 0", {**progress(8), "replicas": [617.2, 617.3]}))
    assert text == "generate 0: 8 of 64 completions 1,234 tokens/s (617 + 617)\n"


@pytest.mark.parametrize("message", ["file[1].parquet", "[/dim] [bold", "[red]no color[/red]"])
def test_a_note_is_shown_as_it_is(message: str) -> None:
    assert said(("shape 0", {"event": "note", "message": message})) == f"shape 0: {message}\n"


@pytest.mark.parametrize("event", ["note", "failed"])
def test_no_message_steers_the_terminal(event: str) -> None:
    text = said(("shape 0", {"event": event, "message": "group \x1b]0;title\x07\u202e"}))
    assert "group ‹U+001B›]0;title‹U+0007›‹U+202E›" in text and "\x1b" not in text


def test_a_terminal_shows_bars_and_leaves_lines() -> None:
    text = said(
        ("generate 0", {"event": "started"}),
        ("generate 0", {"event": "started"}),
        ("generate 0", progress(8)),
        ("generate 0", progress(64)),
        ("generate 0", {"event": "finished"}),
        terminal=True,
    )
    assert "✓" in text
    assert text.rstrip().splitlines()[-1].count("generate 0") <= 1


def test_progress_of_a_stage_that_was_not_started_does_no_harm() -> None:
    assert said(("generate 0", {"event": "finished"})).startswith("✓ generate 0")
    assert said(("generate 0", progress(1)), terminal=True) is not None


def test_what_goes_to_a_file_has_long_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert room.answer_console(file=io.StringIO()).width == room.FILE_WIDTH
    monkeypatch.setenv("COLUMNS", "50")
    assert room.answer_console(file=io.StringIO()).width == 50
