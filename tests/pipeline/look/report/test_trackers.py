"""Trackers are given every step and every evaluation, once. Read back with each tracker's own reader."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.common.errors import StageFailed, UserError
from pipeline.look.trackers.series import points
from pipeline.look.trackers.tracker import send
from pipeline.run.state import Run
from pipeline.store import read_table
from schemas import Metrics


def losses(run: Run) -> list[float]:
    """The loss of every optimizer step of a run, as the metrics tables have it; what is not finite is left out."""
    tables = [read_table(step.checkpoint, Metrics).sort("step") for step in run.iterations if step.checkpoint]
    return [loss for table in tables for loss in table["loss"] if math.isfinite(loss)]


def test_every_step_and_evaluation_is_a_point_on_one_axis(run: Run) -> None:
    found = list(points(run))
    trained = [point for point in found if "train/loss" in point.figures]
    judged = [point for point in found if "eval/pass_at_1" in point.figures]
    assert [point.figures["train/loss"] for point in trained] == losses(run)
    assert [point.step for point in found] == sorted(point.step for point in found)
    assert len(judged) == len([step for step in run.iterations if step.evaluation])
    assert judged[0].step == 0
    assert all(math.isfinite(value) for point in found for value in point.figures.values())


@pytest.mark.needs("tensorboard")
def test_tensorboard_reads_what_was_sent_even_when_it_was_sent_twice(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    send(run, "tensorboard", tmp_path)
    assert send(run, "tensorboard", tmp_path) == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    (file,) = (tmp_path / "tensorboard").rglob("events.*")
    events = list(EventFileLoader(str(file)).Load())
    sent = [value for event in events for value in event.summary.value if value.tag == "train/loss"]
    assert [value.tensor.float_val[0] for value in sent] == pytest.approx(losses(run))


@pytest.mark.needs("mlflow")
def test_mlflow_reads_what_was_sent_and_a_second_sending_replaces_the_first(run: Run, tmp_path: Path) -> None:
    import mlflow

    for _ in range(2):
        send(run, "mlflow", tmp_path)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("rollbook")
    (kept,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(kept.info.run_id, "train/loss")
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(losses(run))
    assert kept.data.params["train.algorithm"] == run.config.train.algorithm


@pytest.mark.needs("wandb")
def test_wandb_offline_writes_a_run_that_can_be_synced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    command = send(run, "wandb", tmp_path)
    directory = Path(command.removeprefix("wandb sync "))
    (file,) = directory.glob("run-*.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"eval/pass_at_1" in content


@pytest.mark.needs("tensorboard")
def test_a_setting_of_several_lines_is_one_row_of_tensorboards_table() -> None:
    from pipeline.look.trackers.tensorboard_tracker import _text

    text = _text("settings", {"data.template": "Q: {question}\nA: `|", "seed": 0}).value[0].tensor.string_val[0].decode()
    assert text.splitlines()[2:] == ["| `data.template` | `Q: {question} A:` |", "| `seed` | `0` |"]


def test_a_run_without_figures_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run has no figures yet"):
        send(Run(run.config), "tensorboard", tmp_path)


@pytest.mark.needs("wandb")
def test_what_a_library_refuses_is_one_message(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(StageFailed, match=r"wandb: .*mode.* run the same command again"):
        send(run, "wandb", tmp_path)


def test_an_unknown_tracker_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tracker 'comet'; there are tensorboard, wandb, mlflow"):
        send(run, "comet", tmp_path)
