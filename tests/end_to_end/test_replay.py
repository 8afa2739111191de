"""A run that trains on rollouts of earlier iterations too: what it leaves behind, killed, compared, and named by another."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.run.record import load_run
from pipeline.store import read_table
from schemas import Metrics, Shaped

pytestmark = pytest.mark.long

Ids = Callable[[Path], dict[str, str]]
REPLAY = {"iterations": 2, "share": 0.5, "decay": 0.5}


@pytest.fixture(scope="module")
def replayed(rollbook: Any, write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of three iterations, and its config: half of each later training is replayed."""
    directory = tmp_path_factory.mktemp("replayed")
    config = write_config(directory / "tiny.yaml", iterations=3, replay=REPLAY, train={"batch_completions": 8})
    ended = rollbook("run", config, "--set", f"run_dir={directory / 'run'}")
    assert ended.status == 0, ended.err
    return config, directory / "run"


def test_half_of_each_later_training_is_replayed_with_newer_rollouts_first(replayed: tuple[Path, Path]) -> None:
    run = load_run(replayed[1])
    drawn = {
        step.iteration: {part.rollouts.summary["policy_version"]: part.shaped.summary["kept_groups"] for part in step.replayed}
        for step in run.iterations
    }
    # 8 new groups, so 8 are replayed; of two sources at weights 1 and 1/2, 5.33 and 2.67.
    assert drawn == {0: {}, 1: {0: 8}, 2: {1: 5, 0: 3}, 3: {}}
    assert run.iterations[1].replayed[0].shaped.id == run.iterations[0].shaped.id  # all of them: nothing to leave out
    for part in run.iterations[2].replayed:
        reasons = read_table(part.shaped, Shaped)["drop_reason"].drop_nulls()
        assert set(reasons) == {"not_drawn"}
        assert len(reasons) == 32 - 4 * part.shaped.summary["kept_groups"]


def test_the_age_of_the_data_is_in_the_metrics_and_the_ratio_of_stale_rows_is_their_own(replayed: tuple[Path, Path]) -> None:
    for step in load_run(replayed[1]).iterations[:3]:
        assert step.checkpoint
        metrics = read_table(step.checkpoint, Metrics)
        first = metrics.filter(epoch=0)
        ages = float((first["age_mean"] * first["completions"]).sum() / first["completions"].sum())
        expected = {0: 0.0, 1: 0.5, 2: (5 * 1 + 3 * 2) / 16}
        assert ages == pytest.approx(expected[step.iteration])
        assert metrics["age_max"].max() == step.iteration
        # Stored and recomputed logprobs agree on what the parent drew, although replayed rows have moved away from theirs.
        assert step.checkpoint.summary["logprob_difference_mean"] < 1e-3


def test_status_and_report_know_of_it(rollbook: Any, replayed: tuple[Path, Path]) -> None:
    said = rollbook("status", replayed[1], "--json")
    rows = json.loads(said.out)["iterations"]
    assert [row["replayed_completions"] for row in rows] == [0, 32, 32, 0]
    assert "Age of the completions" in (replayed[1] / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("until", ["shaped/*/part-*.parquet", "checkpoint/*/.resume/step-00000002"])
def test_killed_while_mixing_and_while_training_on_the_mixture(
    rollbook: Any, replayed: tuple[Path, Path], tmp_path: Path, ids: Ids, until: str
) -> None:
    config, finished = replayed
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    last = load_run(run).iterations[2]
    assert last.checkpoint
    for artifact in [last.checkpoint, *(part.shaped for part in last.replayed)]:
        shutil.rmtree(artifact.path)
    root = run / "artifacts"

    def begun() -> bool:
        return any(not (root / Path(*path.relative_to(root).parts[:2]) / "manifest.json").exists() for path in root.glob(until))

    command = ("run", config, "--set", f"run_dir={run}")
    started = rollbook.start(*command)
    started.until(begun, pace=0.001)  # mixing is over soon
    started.process.kill()
    assert started.wait().status == -signal.SIGKILL
    assert started.left_over() == {}
    ended = rollbook(*command)
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished)


def test_a_comparison_mixes_as_the_run_does_and_finds_its_training(rollbook: Any, replayed: tuple[Path, Path]) -> None:
    said = rollbook("compare", replayed[1], "-i", "2", "-a", "rec-oneside-nois", "--no-baseline", "--json")
    assert said.status == 0, said.err
    rows = pl.read_parquet(Path(json.loads(said.out)["path"]) / "comparison.parquet")
    checkpoint = load_run(replayed[1]).iterations[2].checkpoint
    assert checkpoint and rows["checkpoint_id"].to_list() == [checkpoint.id]


def test_another_run_can_name_the_rollouts(
    rollbook: Any, replayed: tuple[Path, Path], write_config: Callable[..., Path], tmp_path: Path
) -> None:
    answers = load_run(replayed[1]).iterations[1].answers
    assert answers and answers.rollouts
    changes = {"seed": 4, "replay": {"artifacts": [{"path": str(answers.rollouts.path)}], "share": 0.2, "loss_weight": 0.5}}
    config = write_config(tmp_path / "other.yaml", **changes)
    ended = rollbook("train", config, "--set", f"run_dir={tmp_path / 'other'}")
    assert ended.status == 0, ended.err
    (step,) = load_run(tmp_path / "other").iterations
    (part,) = step.replayed
    assert part.rollouts.id == answers.rollouts.id
    table = read_table(part.shaped, Shaped)
    assert table.filter("keep")["group_id"].n_unique() == 2  # a fifth of 10
    assert set(table.filter("keep")["weight"]) == {0.5}
    assert step.checkpoint and step.checkpoint.manifest.content.parents[3].id == answers.rollouts.id
