"""A run's record: written, read back, moved with its directory, and refused when it does not fit what lies there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import IntegrityError, UserError
from pipeline.config.run import RunConfig
from pipeline.run.parts import Part
from pipeline.run.record import load_run, recorded_config, save_run
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Request, Store, Work

Make = Callable[..., Artifact]


@pytest.fixture
def run(make_config: Callable[..., RunConfig], make_artifact: Make) -> Run:
    """A run that stands before the training of iteration 1; its artifacts lie in `store`."""
    base, checkpoint = make_artifact("checkpoint", iteration=0), make_artifact("checkpoint", iteration=1)
    answers = [
        Answers(make_artifact("rollouts", name=f"sampled {i}"), None, make_artifact("rollouts", name=f"{i}")) for i in (0, 1)
    ]
    greedy = Answers(answers[0].sampled, make_artifact("rollouts", name="greedy"), answers[0].rollouts)
    evaluations = [make_artifact("evaluation", iteration=i) for i in (0, 1)]
    iterations = [
        Iteration(
            0,
            base,
            answers=greedy,
            evaluation=evaluations[0],
            shaped=make_artifact("shaped"),
            scores={"reference": make_artifact("scores")},
            replayed=(
                Part(make_artifact("rollouts", name="old"), make_artifact("shaped", name="drawn")),
                Part(
                    make_artifact("rollouts", name="older"),
                    make_artifact("shaped", name="all"),
                    {"reference": make_artifact("scores")},
                ),
            ),
            checkpoint=checkpoint,
        ),
        Iteration(1, checkpoint, answers=answers[1], evaluation=evaluations[1]),
    ]
    config = make_config({"train.algorithm_args": {"low": 0.1}, "generate.stop": ["\n"]})
    return Run(config, make_artifact("prompts"), make_artifact("prompts", heldout=True), iterations, missing="shape 1")


def ids(run: Run) -> list[str | None]:
    """Every artifact of a run by its id, in order."""
    found = [run.train_prompts, run.heldout_prompts]
    for step in run.iterations:
        answers = step.answers or Answers(step.policy, None, None)
        found += [step.policy, answers.sampled, answers.greedy, answers.rollouts]
        found += [step.evaluation, step.shaped, *step.scores.values(), step.checkpoint]
        found += [artifact for part in step.replayed for artifact in part.artifacts.values()]
    return [artifact.id if artifact else None for artifact in found]


def change(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = directory / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    edit(record)
    file.write_text(json.dumps(record), encoding="utf-8")


def test_a_record_is_read_back(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path)
    for place in (tmp_path, tmp_path / "run.json"):
        again = load_run(place)
        assert again.config == run.config
        assert again.missing == "shape 1"
        assert ids(again) == ids(run)
        assert [step.iteration for step in again.iterations] == [0, 1]


def test_a_run_that_has_hardly_begun_is_read_back(
    make_config: Callable[..., RunConfig], make_artifact: Make, tmp_path: Path
) -> None:
    save_run(Run(make_config(), missing="prompts"), tmp_path)
    assert load_run(tmp_path) == Run(make_config(), missing="prompts")
    begun = Run(make_config(), make_artifact("prompts"), make_artifact("prompts"), [Iteration(0, make_artifact("checkpoint"))])
    save_run(begun, tmp_path)
    again = load_run(tmp_path)
    assert again.iterations[0].answers is None
    assert again.missing is None


def test_a_moved_directory_takes_its_artifacts_along(run: Run, tmp_path: Path, store: Store) -> None:
    directory = tmp_path / "before"
    directory.mkdir()
    store.root.rename(directory / "artifacts")
    inside = Store(directory / "artifacts")
    base = next(artifact for artifact in inside.artifacts() if artifact.id == run.iterations[0].policy.id)
    save_run(Run(run.config, iterations=[Iteration(0, base)]), directory)
    assert "before" not in (directory / "run.json").read_text(encoding="utf-8").replace('"run_dir"', "")
    directory.rename(tmp_path / "after")
    moved = load_run(tmp_path / "after").iterations[0].policy
    assert moved.id == base.id
    assert moved.path.is_relative_to(tmp_path / "after")


def test_artifacts_in_a_shared_store_are_named_by_their_whole_path(
    run: Run, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    save_run(run, Path("run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert ids(load_run(tmp_path / "moved")) == ids(run)


@pytest.mark.parametrize("place", ["nowhere", "run/nowhere", "run"])
def test_where_there_is_no_run_the_place_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=rf"{place}: no run there \(it has no run\.json\)\. Name a run directory such as"):
        load_run(tmp_path / place)


def test_an_artifact_that_was_replaced_is_refused(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path)
    shaped = run.iterations[0].shaped
    assert shaped is not None
    shutil.rmtree(shaped.path)
    with Store(tmp_path / "store").work(Request("shaped", "test/1", {})) as work:
        assert isinstance(work, Work)
        work.finish({"other": True})
    with pytest.raises(IntegrityError, match=rf"{shaped.path.name}: has id [0-9a-f]{{16}}, the run recorded {shaped.id[:16]}"):
        load_run(tmp_path)


def test_an_artifact_that_is_gone_is_named(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path)
    shutil.rmtree(run.iterations[1].policy.path)
    with pytest.raises(UserError, match=rf"{run.iterations[1].policy.path.name}: not a finished artifact"):
        load_run(tmp_path)


def test_an_artifact_whose_manifest_was_changed_is_refused(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path)
    manifest = run.iterations[0].policy.path / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"iteration": 0', '"iteration": 5'), encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"manifest\.json: its content hashes to another id"):
        load_run(tmp_path)


def test_an_unknown_format_is_refused(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path)
    change(tmp_path, lambda record: record.update(format="rollbook-run/9"))
    with pytest.raises(UserError, match=r"run\.json: format 'rollbook-run/9'; this version of rollbook reads 'rollbook-run/1'"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record.pop("format"),
        lambda record: record.pop("train_prompts"),
        lambda record: record["config"].pop("model"),
        lambda record: record["config"].update(color="red"),
        lambda record: record.update(iterations=[3]),
        lambda record: record["iterations"][0].update(policy=None),
        lambda record: record["iterations"][0].update(policy="elsewhere"),
        lambda record: record["iterations"][0]["policy"].pop("id"),
        lambda record: record["iterations"][0].pop("evaluation"),
    ],
)
def test_a_record_that_does_not_hold_what_it_should_is_refused(run: Run, tmp_path: Path, edit: Callable[[Any], None]) -> None:
    save_run(run, tmp_path)
    change(tmp_path, edit)
    with pytest.raises(IntegrityError, match=r"run\.json: not a valid run record: "):
        load_run(tmp_path)


def test_settings_that_this_version_lacks_are_named(run: Run, tmp_path: Path) -> None:
    save_run(run, tmp_path)
    change(tmp_path, lambda record: (record["config"].update(color="red"), record["config"]["shape"].update(hue=1)))
    why = r"it has settings that this version lacks \(shape\.hue, color\): use the version that wrote it$"
    with pytest.raises(IntegrityError, match=why):
        load_run(tmp_path)
    with pytest.raises(IntegrityError, match=why):
        recorded_config(tmp_path)
    change(tmp_path, lambda record: record["config"].update(seed="x"))
    with pytest.raises(IntegrityError, match=r"not a valid run record: .*seed: .*\(found 'x'\)"):
        load_run(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff"], ids=repr)
def test_what_is_no_record_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(IntegrityError, match=r"run\.json: not a valid run record: "):
        load_run(tmp_path)
