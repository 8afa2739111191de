"""Which checkpoints lose their weights, and what is left of those that do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.look.audit.audit import audit
from pipeline.run.record import load_run, save_run
from pipeline.run.retention import Retention, removable, spare
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Request, Store
from pipeline.store.removed import Removal

MakeRun = Callable[..., Run]


def quiet(message: str) -> None:
    pass


def made(store: Store, kind: Any, stage: str, files: dict[str, bytes], parents: dict[str, Artifact], **recipe: Any) -> Artifact:
    request = Request(kind, stage, recipe, tuple(parent.as_parent(role) for role, parent in parents.items()))
    with store.work(request) as work:
        if isinstance(work, Artifact):  # another run's
            return work
        for name, content in files.items():
            (work.path / name).write_bytes(content)
        return work.finish({"pass_at": {"1": {"value": recipe["value"]}}} if "value" in recipe else {})


@pytest.fixture
def make_run(tmp_path: Path, settings: Callable[..., dict[str, Any]]) -> MakeRun:
    """make_run(accuracies, keep=…): a run whose checkpoints, the base first, were judged like that."""

    def make(accuracies: list[float], **changes: Any) -> Run:
        changes = {"run_dir": str(tmp_path / "run"), "iterations": len(accuracies) + 2, **changes}
        config = RunConfig.model_validate(settings(changes))
        store, run = Store(config.store_url), Run(config, missing=f"shape {len(accuracies) - 1}")
        weights = {"config.json": b"{}", "model.safetensors": bytes(100)}
        policy = made(store, "checkpoint", "import/1", weights, {})
        for number, accuracy in enumerate(accuracies):
            if number:
                run.iterations[-1].checkpoint = policy = made(
                    store, "checkpoint", "train/1", weights, {"policy": policy}, number=number
                )
            rollouts = made(store, "rollouts", "generate/1", {}, {"policy": policy})
            judged = made(store, "evaluation", "evaluate/1", {}, {"policy": policy}, value=accuracy)
            run.iterations.append(Iteration(number, policy, Answers(rollouts, None, rollouts), judged))
        save_run(run, config.directory)
        return run

    return make


def spared(run: Run) -> list[int]:
    versions = {step.policy.id: step.iteration for step in run.iterations}
    return [versions[artifact.id] for artifact in spare(run)]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        ({}, []),
        ({"last": 1}, [1, 2, 3, 4]),
        ({"last": 2}, [1, 2, 3]),
        ({"best": True}, [1, 3, 4]),
        ({"every": 2}, [1, 3]),
        ({"last": 2, "best": True, "every": 3}, [1]),
    ],
)
def test_base_and_newest_stay_and_what_a_rule_names(make_run: MakeRun, keep: dict[str, Any], gone: list[int]) -> None:
    assert spared(make_run([0.1, 0.2, 0.6, 0.4, 0.3, 0.5], keep=keep)) == gone


def test_what_a_later_iteration_has_as_its_reference_stays(make_run: MakeRun) -> None:
    """Iterations 4 and 5 are still to come: with every 3, they read the policy of iteration 3."""
    accuracies = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert spared(make_run(accuracies, iterations=6, keep={"last": 1}, reference={"every": 3})) == [1, 2]
    assert spared(make_run(accuracies, iterations=6, keep={"last": 1}, reference={"iteration": 2})) == [1, 3]
    assert spared(make_run(accuracies, iterations=4, keep={"last": 1}, reference={"iteration": 2})) == [1, 2, 3]


def test_manifest_and_tables_stay_and_the_weights_are_refused_with_what_became_of_them(make_run: MakeRun) -> None:
    run = make_run([0.1, 0.2, 0.3], keep={"last": 1})
    said: list[str] = []
    Retention(Store(run.config.store_url), said.append).apply(run)
    policy = run.iterations[1].policy
    assert said == [f"weights of checkpoint/{policy.path.name} removed, 100 bytes (keep: last 1)"]
    assert sorted(path.name for path in policy.path.iterdir()) == ["config.json", "manifest.json", "removed.json"]
    with pytest.raises(
        UserError, match=r"its weights were removed by retention \(keep: last 1 of run .*restore model.safetensors"
    ):
        policy.verify()
    run.iterations[2].policy.verify()
    assert [step.policy.id for step in load_run(run.config.directory).iterations] == [step.policy.id for step in run.iterations]
    Retention(Store(run.config.store_url), said.append).apply(run)
    assert len(said) == 1


def test_the_audit_calls_it_removed_and_damage_damage(make_run: MakeRun) -> None:
    run = make_run([0.1, 0.2, 0.3, 0.4], keep={"last": 1})
    Retention(Store(run.config.store_url), quiet).apply(run)
    (run.iterations[3].policy.path / "model.safetensors").unlink()
    note = json.loads((run.iterations[1].policy.path / "removed.json").read_text())
    note["files"] = ["model.safetensors", "config.json"]  # nobody removes settings
    (run.iterations[1].policy.path / "removed.json").write_text(json.dumps(note))
    found = {(f.artifact, f.file): (f.severity, f.check) for f in audit(run.config.directory).findings if f.area == "integrity"}
    one, two, three = (f"checkpoint/{run.iterations[number].policy.path.name}" for number in (1, 2, 3))
    assert found[two, "model.safetensors"] == ("note", "removed")
    assert (two, "removed.json") not in found
    assert found[three, "model.safetensors"] == ("error", "missing")
    assert found[one, "model.safetensors"] == ("error", "missing") and found[one, "removed.json"] == ("error", "unlisted")


def test_who_is_killed_while_removing_leaves_an_artifact_that_says_so_and_the_next_run_goes_on(make_run: MakeRun) -> None:
    run = make_run([0.1, 0.2, 0.3], keep={"last": 1})
    store, policy = Store(run.config.store_url), run.iterations[1].policy
    note = Removal.now(["model.safetensors"], "keep: last 1").text
    (policy.path / "removed.json").write_text(note)
    Retention(store, quiet).apply(run)
    assert not (policy.path / "model.safetensors").exists()
    assert (policy.path / "removed.json").read_text() == note


def test_what_something_beside_the_run_was_made_from_stays(make_run: MakeRun) -> None:
    run = make_run([0.1, 0.2, 0.3, 0.4, 0.5], keep={"last": 1})
    store, policies = Store(run.config.store_url), [step.policy for step in run.iterations]
    made(store, "checkpoint", "train/1", {}, {"policy": policies[1]}, trial="of a comparison")
    answers = run.iterations[2].answers
    assert answers is not None and answers.rollouts is not None
    (run.config.directory / "comparisons" / answers.rollouts.path.name).mkdir(parents=True)
    assert [artifact.id for artifact, _ in removable(store, [run])] == [policies[3].id]


def test_in_a_store_of_several_runs_only_gc_removes_and_only_what_all_of_them_spare(make_run: MakeRun, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    run = make_run([0.1, 0.2, 0.3, 0.4], keep={"last": 1}, store=shared)
    Retention(Store(shared), quiet).apply(run)
    assert all((step.policy.path / "model.safetensors").exists() for step in run.iterations)
    other = make_run([0.1, 0.2], keep={"last": 1}, store=shared, run_dir=str(tmp_path / "other"))
    assert other.iterations[1].policy.id == run.iterations[1].policy.id
    assert [artifact.id for artifact, _ in removable(Store(shared), [run, other])] == [run.iterations[2].policy.id]


def test_gc_lists_and_removes_weights(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli import answer

    run = make_run([0.1, 0.2, 0.3], keep={"last": 1})
    assert answer(["gc", str(run.config.directory)]) == 0
    assert "retention: 1, 100 bytes" in capsys.readouterr().out
    assert answer(["gc", str(run.config.directory), "--delete"]) == 0
    assert not (run.iterations[1].policy.path / "model.safetensors").exists()
    assert answer(["gc", str(run.config.directory)]) == 0
    assert "retention" not in capsys.readouterr().out.split("\n", 2)[-1]
    assert answer(["repair", str(run.iterations[1].policy.path)]) == 0
