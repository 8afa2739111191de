"""The whole chain, through the command line: what it writes, that it is coherent, and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.run.record import load_run
from pipeline.store import Artifact, Store, read_table
from schemas import TABLES, Evaluation, Metrics, Rollouts

Ids = Callable[[Path], dict[str, str]]


def tables_of(artifact: Artifact) -> list[tuple[Path, str]]:
    """Every table file of an artifact, with the table's name."""
    files = (*artifact.manifest.content.files, *artifact.manifest.provenance.files)
    return [(artifact.path / file.path, file.table.split("/")[0]) for file in files if file.table]


def files_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change of every file."""
    stats = {path: path.stat() for path in directory.rglob("*") if path.is_file()}
    return {str(path.relative_to(directory)): (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def test_a_run_ends_well_and_says_where_its_results_are(finished: Any) -> None:
    assert finished.command.status == 0
    assert "Traceback" not in finished.command.err
    assert str(finished.directory / "report.html") in finished.command.out
    for stage in ("generate 0", "evaluate 0", "shape 0", "train 0", "generate 1", "evaluate 1"):
        assert f"✓ {stage}" in finished.command.err


def test_every_stage_left_its_artifact(finished: Any) -> None:
    kinds = [artifact.kind for artifact in finished.store.artifacts()]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {"prompts": 2, "checkpoint": 2, "optimizer": 1, "rollouts": 5, "shaped": 1, "evaluation": 2}


def test_every_file_is_what_its_manifest_says(finished: Any) -> None:
    for artifact in finished.store.artifacts():
        artifact.verify()
        listed = {file.path for file in (*artifact.manifest.content.files, *artifact.manifest.provenance.files)}
        found = {path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file()}
        assert found == listed | {"manifest.json"}


def test_every_parent_exists(finished: Any) -> None:
    artifacts = list(finished.store.artifacts())
    known = {artifact.id: artifact.kind for artifact in artifacts}
    parents = [parent for artifact in artifacts for parent in artifact.manifest.content.parents]
    assert len(parents) > len(artifacts)
    assert all(known.get(parent.id) == parent.kind for parent in parents)


def test_the_record_of_the_run_names_every_artifact(finished: Any) -> None:
    record = (finished.directory / "run.json").read_text(encoding="utf-8")
    assert all(artifact.id in record for artifact in finished.store.artifacts() if artifact.kind != "optimizer")


def test_every_table_fits_its_schema(finished: Any) -> None:
    seen = set()
    for artifact in finished.store.artifacts():
        for path, name in tables_of(artifact):
            table = TABLES[name]
            assert table.differences(pq.read_schema(path)) == []
            assert table.check(pl.read_parquet(path)).bad.is_empty()
            seen.add(name)
    assert seen >= {"prompts", "rollouts", "shaped", "metrics", "timing", "evaluation"}


def test_rollouts_are_all_there_and_say_whose_they_are(finished: Any) -> None:
    first, last = load_run(finished.directory).iterations
    assert first.answers and last.answers and first.answers.rollouts and first.answers.greedy
    rollouts = read_table(first.answers.rollouts, Rollouts)
    assert rollouts.group_by("group_id").len()["len"].to_list() == [4] * 8
    assert rollouts["policy_id"].unique().to_list() == [first.policy.id]
    assert rollouts["policy_version"].unique().to_list() == [0]
    assert read_table(first.answers.sampled, Rollouts).height == 16 * 2
    assert read_table(first.answers.greedy, Rollouts).height == 16
    assert read_table(last.answers.sampled, Rollouts)["policy_id"].unique().to_list() == [last.policy.id]
    assert last.answers.rollouts is None


def test_training_took_every_step_on_rollouts_that_match_its_own_logprobs(finished: Any) -> None:
    checkpoint = load_run(finished.directory).iterations[0].checkpoint
    assert checkpoint
    metrics = read_table(checkpoint, Metrics)
    assert metrics["step"].to_list() == list(range(16))
    assert metrics["epoch"].to_list() == [0] * 8 + [1] * 8
    assert 0 <= checkpoint.summary["logprob_difference_mean"] < 1e-4


def test_evaluation_counts_what_was_graded(finished: Any) -> None:
    for step in load_run(finished.directory).iterations:
        assert step.evaluation and step.answers
        frame = read_table(step.evaluation, Evaluation).filter(mode="sampled")
        rewards = read_table(step.answers.sampled, Rollouts)["reward"]
        assert step.evaluation.summary["pass_at"]["1"]["value"] == pytest.approx((rewards >= 1).mean())
        assert frame["solved"].sum() == (rewards >= 1).sum()


def test_status_gives_figures_for_every_checkpoint(finished: Any, rollbook: Any) -> None:
    answer = rollbook("status", finished.directory, "--json")
    status = json.loads(answer.out)
    assert answer.status == 0
    assert (status["complete"], status["missing"]) == (True, None)
    first, last = status["iterations"]
    for figures in (first, last):
        assert 0 <= figures["pass_at_1_low"] <= figures["pass_at_1"] <= figures["pass_at_1_high"] <= 1
        assert 0 <= figures["greedy_accuracy"] <= 1
    assert first["reward_mean"] is not None and first["kl_behavior"] is not None and first["tokens"] > 0
    assert first["seconds"]["train"] > 0
    assert last["artifacts"]["policy"]["id"] == first["artifacts"]["checkpoint"]["id"]


def test_the_report_is_one_page_with_the_runs_name(finished: Any) -> None:
    page = (finished.directory / "report.html").read_text(encoding="utf-8")
    assert "tiny" in page
    assert page.rstrip().endswith("</html>")


def test_the_same_command_does_nothing_twice(finished: Any, rollbook: Any) -> None:
    before = files_of(finished.directory)
    again = rollbook("run", finished.config, "--set", f"run_dir={finished.directory}")
    after = files_of(finished.directory)
    assert again.status == 0, again.err
    assert again.out == finished.command.out
    assert after == before
    assert again.seconds < finished.command.seconds / 2


@pytest.mark.slow
def test_stage_by_stage_gives_the_same_artifacts_and_run_finds_them(finished: Any, served: Any, ids: Ids, tmp_path: Path) -> None:
    expected = ids(finished.directory)
    run = tmp_path / "run"

    def go(*command: str) -> dict[str, str]:
        ended = served(command[0], finished.config, *command[1:], "--set", f"run_dir={run}")
        assert ended.status == 0, ended.err
        assert "Traceback" not in ended.err
        return ids(run)

    def kinds(found: dict[str, str]) -> dict[str, int]:
        names = [name.split("/")[0] for name in found]
        return {name: names.count(name) for name in names}

    made = {"prompts": 2, "checkpoint": 1, "rollouts": 3}
    assert kinds(go("generate")) == made
    assert kinds(go("evaluate", "--iteration", "0")) == made | {"evaluation": 1}
    assert kinds(go("shape", "-i", "0")) == made | {"evaluation": 1, "shaped": 1}
    assert kinds(go("train", "--iteration", "0")) == made | {"evaluation": 1, "shaped": 1, "checkpoint": 2, "optimizer": 1}
    assert go("evaluate", "--iteration", "1") == expected
    before = files_of(run / "artifacts")
    assert go("run") == expected
    assert files_of(run / "artifacts") == before
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_rewards_that_are_all_0_are_told_before_and_end_the_run_with_a_status_of_its_own(
    finished: Any, served: Any, tmp_path: Path
) -> None:
    (tmp_path / "zero.py").write_text("def score(completion):\n    return 0\n", encoding="utf-8")
    sets = ("--set", f"run_dir={tmp_path / 'run'}", "--set", "reward.components=[{grader: 'zero:score'}]")
    why = "stop.no_signal ended it after iteration 0: all rewards are 0, so there is nothing to learn from"
    for _ in range(2):
        ended = served("run", finished.config, *sets, cwd=tmp_path)
        assert ended.status == 3 and why in ended.err.splitlines()[-1]
        assert "stopped:   after iteration 0: all rewards are 0" in ended.out
        assert "warning:   iteration 0: all rewards are 0, so there is nothing to learn from" in ended.out
        assert '<p class="state warning">Stopped after iteration 0' in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "run/artifacts/shaped").glob("../checkpoint/*/metrics*.parquet"))


@pytest.mark.slow
def test_more_iterations_go_on_from_what_is_there(finished: Any, served: Any, ids: Ids, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.directory, run)
    before = files_of(run / "artifacts")
    ended = served("run", finished.config, "--set", f"run_dir={run}", "--set", "iterations=2")
    assert ended.status == 0, ended.err
    after = files_of(run / "artifacts")
    kept = [name for name in before if not name.startswith(("locks", "optimizer"))]  # moments are those of the newest alone
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    iterations = load_run(run).iterations
    assert [step.iteration for step in iterations] == [0, 1, 2]
    assert iterations[2].policy.parent("policy").id == iterations[1].policy.id
    first, second = (step.answers.rollouts for step in iterations[:2] if step.answers)
    assert first and second
    prompts = [set(read_table(rollouts, Rollouts, ["prompt_id"])["prompt_id"]) for rollouts in (first, second)]
    assert prompts[0].isdisjoint(prompts[1])
    assert {name for name in ids(finished.directory) if not name.startswith("optimizer")} < set(ids(run))
    assert Store(run / "artifacts").get(iterations[2].policy.parent("rollouts")).id == second.id
