"""A tracker has a run's steps while they happen, each once, whatever ends the process in between."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.look.trackers.live import Live
from pipeline.look.trackers.series import Point
from pipeline.look.trackers.tracker import send
from pipeline.run.state import Run
from pipeline.store import read_table
from schemas import Metrics, Timing

Value = tuple[int, float]
TRACKERS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tensorboard", "mlflow", "wandb")]


def sent(place: Path, tag: str) -> list[Value]:
    """What lies at a place under a name: steps and values, as the tracker's own reader has them."""
    return {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}[place.name](place, tag)


def in_tensorboard(place: Path, tag: str) -> list[Value]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for file in sorted(place.rglob("events.*")) for event in EventFileLoader(str(file)).Load()]
    values = [(event.step, value) for event in events for value in event.summary.value if value.tag == tag]
    return [(step, value.tensor.float_val[0]) for step, value in values]


def in_mlflow(place: Path, tag: str) -> list[Value]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=(place / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("rollbook").experiment_id])
    history = client.get_metric_history(run.info.run_id, tag)
    return [(value.step, value.value) for value in sorted(history, key=lambda value: value.step)]


def in_wandb(place: Path, tag: str) -> list[Value]:
    """Of the newest offline run: its file is a log of blocks in LevelDB's format, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    newest = max((place / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_ctime_ns)
    (file,) = newest.glob("*.wandb")
    end = time.monotonic() + 30
    while True:  # what was finished is written a moment later
        records = [Record.FromString(data) for data in wandb_records(file.read_bytes())]
        if (records and records[-1].WhichOneof("record_type") == "exit") or time.monotonic() > end:
            break
        time.sleep(0.1)
    axis = "completions" if tag.startswith("generate/") else "step"
    rows = [{"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item} for record in records]
    return [(row[axis], row[tag]) for row in rows if tag in row]


def in_lines(place: Path, tag: str) -> list[Value]:
    """What was given to W&B, which writes every quarter of a minute."""
    (file,) = (place / "wandb").glob("*.jsonl")
    points = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(point["step"], point["figures"][tag]) for point in points if tag in point["figures"]]


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of a file: 7 bytes of W&B's own, then blocks of 32 KB of chunks: checksum, length, and whether a record goes on."""
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.fixture(params=TRACKERS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where figures go; its name is the tracker's."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / request.param


@pytest.fixture
def tracked(run: Run, place: Path) -> Run:
    track = run.config.track.model_copy(update={"to": place.name, "out": str(place)})
    return replace(run, config=run.config.model_copy(update={"track": track}))


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


def left(live: Live, place: Path) -> None:
    """As if its process were killed: nothing is closed. W&B lets no process open a run twice: see the test that kills one."""
    if place.name == "wandb":
        live.close()


def before_training(run: Run) -> Run:
    """The run when its first training begins: evaluated, and not yet trained."""
    return replace(run, iterations=[replace(run.iterations[0], checkpoint=None)])


def test_a_step_is_there_as_soon_as_it_was_taken(tracked: Run, place: Path) -> None:
    live = Live(tracked.config, pytest.fail)
    live.see(before_training(tracked))
    at_once = in_lines if place.name == "wandb" else sent
    assert [step for step, _ in at_once(place, "eval/pass_at_1")] == [0]
    train(live, tracked, 0, slice(0, 1))
    assert [step for step, _ in at_once(place, "train/loss")] == [0]  # and the tracker is not closed
    assert len(at_once(place, "train/tokens_per_second")) == 1
    live.close()


def test_steps_that_are_taken_again_after_a_crash_are_there_once(tracked: Run, place: Path) -> None:
    first = Live(tracked.config, pytest.fail)
    first.see(before_training(tracked))
    train(first, tracked, 0, slice(0, 2))
    left(first, place)
    second = Live(tracked.config, pytest.fail)
    second.see(before_training(tracked))
    steps = train(second, tracked, 0, slice(1, None))  # from the resume point after the first step
    left(second, place)
    third = Live(tracked.config, pytest.fail)
    third.see(before_training(tracked))
    train(third, tracked, 0, slice(3, None))
    third.see(tracked)
    third.close()
    found = sent(place, "train/seconds")
    total = sum(len(read_table(step.checkpoint, Metrics)) for step in tracked.iterations if step.checkpoint)
    assert [step for step, _ in found] == list(range(total)) and steps > 2
    assert len(sent(place, "eval/pass_at_1")) == sum(step.evaluation is not None for step in tracked.iterations)


def test_what_no_event_told_is_read_from_the_tables(tracked: Run, place: Path) -> None:
    live = Live(tracked.config, pytest.fail)
    live.see(tracked)
    live.close()
    tables = [read_table(step.checkpoint, Metrics).sort("step") for step in tracked.iterations if step.checkpoint]
    losses = [loss for table in tables for loss in table["loss"] if math.isfinite(loss)]
    assert [loss for _, loss in sent(place, "train/loss")] == pytest.approx(losses)


def test_the_speed_of_generation_has_an_axis_of_completions_that_goes_on(tracked: Run, place: Path) -> None:
    for _ in range(2):  # the second process makes what the first did not get to
        live = Live(tracked.config, pytest.fail)
        live.see(before_training(tracked))
        live.tell("generate 0", {"event": "started"})
        for done, speed in ((4, 100.0), (10, 150.0)):
            live.tell("generate 0", {"event": "progress", "done": done, "total": 20, "tokens_per_second": speed})
        live.close()
    assert sent(place, "generate/tokens_per_second") == [(4, 100.0), (10, 150.0), (14, 100.0), (20, 150.0)]


def test_sending_by_hand_meanwhile_leaves_every_step_once(tracked: Run, place: Path) -> None:
    live = Live(tracked.config, pytest.fail)
    live.see(before_training(tracked))
    train(live, tracked, 0)
    left(live, place)
    send(tracked, place.name, place)
    if place.name == "wandb":
        live = Live(tracked.config, pytest.fail)
    live.see(tracked)
    train(live, tracked, 0)
    live.close()
    steps = [step for step, _ in sent(place, "train/seconds")]
    assert steps == sorted(set(steps)) and len(steps) > 9


def test_a_tracker_that_fails_is_one_warning(tracked: Run, place: Path) -> None:
    warnings: list[str] = []
    place.mkdir()
    (place / place.name).write_text("a file where a directory should be", encoding="utf-8")
    live = Live(tracked.config, warnings.append)
    live.see(before_training(tracked))
    train(live, tracked, 0)
    assert len(warnings) == 1 and f"{place.name} takes no more figures of this run" in warnings[0]


def test_the_run_says_once_where_to_look(tracked: Run, place: Path) -> None:
    said: list[str] = []
    live = Live(tracked.config, pytest.fail, said.append)
    live.see(before_training(tracked))
    train(live, tracked, 0)
    live.close()
    assert len(said) == 1
    looks = {
        "tensorboard": "tensorboard --logdir ",
        "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri file://",
        "wandb": "wandb sync ",
    }
    assert said[0].startswith(f"figures go to {place.name}: {looks[place.name]}") and str(place) in said[0]


@pytest.mark.needs("mlflow")
def test_a_server_that_is_not_there_is_one_warning_after_seconds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    warnings: list[str] = []
    track = run.config.track.model_copy(update={"to": "mlflow", "out": str(tmp_path)})
    start = time.monotonic()
    live = Live(run.config.model_copy(update={"track": track}), warnings.append)
    live.see(run)
    live.close()
    assert len(warnings) == 1 and "mlflow takes no more figures of this run" in warnings[0] and "rollbook track" in warnings[0]
    assert time.monotonic() - start < 60


@pytest.mark.needs("wandb")
def test_what_wandb_lost_when_it_was_killed_is_sent_by_the_next_process(tmp_path: Path) -> None:
    code = f"""
import os
from pipeline.look.trackers.wandb_tracker import LiveWandb
from pipeline.look.trackers.series import Point
from pathlib import Path
live = LiveWandb("n", "0123456789abcdef", {{"seed": 0}}, Path({str(tmp_path)!r}))
for step in range(5):
    live.add(Point(step, 1.0 + step, {{"iteration": 0, "train/loss": step / 2}}))
os.kill(os.getpid(), 9)
"""
    alone = {key: value for key, value in os.environ.items() if "WANDB_SERVICE" not in key}  # else it asks this process's
    assert subprocess.run([sys.executable, "-c", code], check=False, env=alone).returncode == -9
    with (tmp_path / "wandb" / "0123456789abcdef.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "ti')  # and a line that was cut
    from pipeline.look.trackers.wandb_tracker import LiveWandb

    live = LiveWandb("n", "0123456789abcdef", {"seed": 0}, tmp_path)
    live.add(Point(5, 6.0, {"iteration": 0, "train/loss": 2.5}))
    live.close()
    assert in_wandb(tmp_path, "train/loss") == [(step, step / 2) for step in range(6)]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_module(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", no_module)
    with pytest.raises(UserError, match=r"tensorboard is not installed .* `pip install tensorboard`"):
        Live(make_config({"track": {"to": "tensorboard"}}), pytest.fail)
