"""A tracker has a run's steps while they happen, each once, whatever ends the process in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.look.trackers.live import Live
from pipeline.look.trackers.tracker import send
from pipeline.run.state import Run
from pipeline.store import read_table
from schemas import Metrics, Timing

needs = pytest.mark.needs("tensorboard")


def sent(place: Path, tag: str) -> list[tuple[int, float]]:
    """What lies in TensorBoard's files under a tag, as its own reader has it."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for file in sorted(place.rglob("events.*")) for event in EventFileLoader(str(file)).Load()]
    values = [(event.step, value) for event in events for value in event.summary.value if value.tag == tag]
    return [(step, value.tensor.float_val[0]) for step, value in values]


@pytest.fixture
def tracked(run: Run, tmp_path: Path) -> Run:
    config = run.config.model_copy(
        update={"track": run.config.track.model_copy(update={"to": "tensorboard", "out": str(tmp_path)})}
    )
    return replace(run, config=config)


def train(live: Live, run: Run, number: int, steps: slice = slice(None)) -> int:
    """Have a training's process tell of its steps, as `Training` does. Returns how many there were."""
    checkpoint = run.iterations[number].checkpoint
    assert checkpoint
    rows = read_table(checkpoint, Metrics).join(read_table(checkpoint, Timing), on="step").sort("step").to_dicts()
    live.tell(f"train {number}", {"event": "started"})
    if steps.start:
        live.tell(f"train {number}", {"event": "resumed", "steps": rows[: steps.start]})
    for row in rows[steps]:
        progress = {"event": "progress", "done": row["step"] + 1, "total": len(rows), "unit": "steps", "tokens_per_second": 1.0}
        live.tell(f"train {number}", {**progress, "figures": row})
    return len(rows)


def before_training(run: Run) -> Run:
    """The run when its first training begins: evaluated, and not yet trained."""
    return replace(run, iterations=[replace(run.iterations[0], checkpoint=None)])


@needs
def test_a_step_is_there_as_soon_as_it_was_taken(tracked: Run, tmp_path: Path) -> None:
    live = Live(tracked.config, pytest.fail)
    live.see(before_training(tracked))
    assert [step for step, _ in sent(tmp_path, "eval/pass_at_1")] == [0]
    train(live, tracked, 0, slice(0, 1))
    assert [step for step, _ in sent(tmp_path, "train/loss")] == [0]  # and the tracker is not closed
    assert len(sent(tmp_path, "train/tokens_per_second")) == 1


@needs
def test_steps_that_are_taken_again_after_a_crash_are_there_once(tracked: Run, tmp_path: Path) -> None:
    first = Live(tracked.config, pytest.fail)
    first.see(before_training(tracked))
    train(first, tracked, 0, slice(0, 2))  # and is killed: nothing is closed
    second = Live(tracked.config, pytest.fail)
    second.see(before_training(tracked))
    steps = train(second, tracked, 0, slice(1, None))  # from the resume point after the first step
    third = Live(tracked.config, pytest.fail)
    third.see(before_training(tracked))
    train(third, tracked, 0, slice(3, None))
    second.see(tracked)
    second.close()
    found = sent(tmp_path, "train/seconds")
    total = sum(len(read_table(step.checkpoint, Metrics)) for step in tracked.iterations if step.checkpoint)
    assert [step for step, _ in found] == list(range(total)) and steps > 2
    assert len(sent(tmp_path, "eval/pass_at_1")) == sum(step.evaluation is not None for step in tracked.iterations)
    assert len(list(tmp_path.rglob("events.*"))) == 3


@needs
def test_what_no_event_told_is_read_from_the_tables(tracked: Run, tmp_path: Path) -> None:
    live = Live(tracked.config, pytest.fail)
    live.see(tracked)
    live.close()
    tables = [read_table(step.checkpoint, Metrics).sort("step") for step in tracked.iterations if step.checkpoint]
    losses = [loss for table in tables for loss in table["loss"] if math.isfinite(loss)]
    assert [loss for _, loss in sent(tmp_path, "train/loss")] == pytest.approx(losses)


@needs
def test_the_speed_of_generation_has_an_axis_of_completions_that_goes_on(tracked: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second process makes what the first did not get to
        live = Live(tracked.config, pytest.fail)
        live.see(before_training(tracked))
        live.tell("generate 0", {"event": "started"})
        for done, speed in ((4, 100.0), (10, 150.0)):
            live.tell("generate 0", {"event": "progress", "done": done, "total": 20, "tokens_per_second": speed})
        live.close()
    assert sent(tmp_path, "generate/tokens_per_second") == [(4, 100.0), (10, 150.0), (14, 100.0), (20, 150.0)]


@needs
def test_sending_by_hand_meanwhile_leaves_every_step_once(tracked: Run, tmp_path: Path) -> None:
    live = Live(tracked.config, pytest.fail)
    live.see(before_training(tracked))
    train(live, tracked, 0)
    send(tracked, "tensorboard", tmp_path)
    live.see(tracked)
    train(live, tracked, 0)
    live.close()
    steps = [step for step, _ in sent(tmp_path, "train/seconds")]
    assert steps == sorted(set(steps)) and len(steps) > 9


@needs
def test_a_tracker_that_fails_is_one_warning(tracked: Run, tmp_path: Path) -> None:
    warnings: list[str] = []
    (tmp_path / "tensorboard").write_text("a file where a directory should be", encoding="utf-8")
    live = Live(tracked.config, warnings.append)
    live.see(before_training(tracked))
    train(live, tracked, 0)
    assert len(warnings) == 1 and "tensorboard takes no more figures of this run" in warnings[0]


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_module(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", no_module)
    with pytest.raises(UserError, match=r"tensorboard is not installed .* `pip install tensorboard`"):
        Live(make_config({"track": {"to": "tensorboard"}}), pytest.fail)
