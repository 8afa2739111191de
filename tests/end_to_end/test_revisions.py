"""A run of OPA-DPO with the real stages: what its artifacts come from, and that a damaged one is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.prepare.recipes import RECIPES
from pipeline.run.record import load_run
from pipeline.run.state import Run
from pipeline.store.store import load_artifact
from tests.end_to_end.test_paper_recipes import SMALLER

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("opa-dpo")


@pytest.fixture
def run(rollbook: Any, directory: Path) -> Run:
    if not (directory / "run.json").exists():
        changes = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
        ended = rollbook("run", RECIPES / "opa-dpo.yaml", *changes, "--set", f"run_dir={directory}")
        assert ended.status == 0, ended.err
    return load_run(directory)


def test_a_checkpoints_lineage_has_revisions_pairs_sft_and_reference(run: Run, rollbook: Any) -> None:
    """The last training: DPO on pairs of this iteration and of the one before, from the checkpoint of SFT, its own reference."""
    first, second = run.iterations[:2]
    assert first.checkpoint and second.checkpoint and first.revised and second.revised and first.shaped and second.shaped
    said = rollbook("lineage", second.checkpoint.path, "--format", "json")
    assert said.status == 0, said.err
    graph = json.loads(said.out)
    kinds = {node["id"]: node["kind"] for node in graph["nodes"]}
    edges = {(edge["to"], edge["role"], edge["from"]) for edge in graph["edges"]}
    for step in (first, second):
        assert kinds[step.revised.id] == "revisions" and kinds[step.shaped.id] == "shaped"  # type: ignore[union-attr]
        assert step.answers and step.answers.rollouts
        assert (step.revised.id, "rollouts", step.answers.rollouts.id) in edges  # type: ignore[union-attr]
        assert (step.revised.id, "policy", step.policy.id) in edges  # type: ignore[union-attr]
    assert second.policy.id == first.checkpoint.id  # that of SFT
    assert (second.checkpoint.id, "policy", first.checkpoint.id) in edges
    assert {parent for child, _, parent in edges if child == second.checkpoint.id} >= {second.revised.id, second.shaped.id}
    assert {parent for child, _, parent in edges if child == first.checkpoint.id} >= {first.revised.id, first.shaped.id}
    scores = [node for node, kind in kinds.items() if kind == "scores"]
    assert {parent for child, role, parent in edges if child in scores and kinds[parent] == "checkpoint"} == {first.checkpoint.id}
    assert second.shaped.tables("pairs")
    assert set(second.checkpoint.manifest.provenance.notes["reference_logprobs_of_pairs"]) == {"chosen", "rejected"}


def test_damaged_revisions_are_made_anew_with_the_id_they_had(run: Run, rollbook: Any) -> None:
    revised = run.iterations[1].revised
    assert revised is not None
    for name in ("revisions-00000.parquet", "part-00001.parquet"):
        path = revised.path / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        ended = rollbook("repair", revised.path)
        assert ended.status == 1 and f"damaged   {name}" in ended.out
        ended = rollbook("repair", revised.path, "--regenerate")
        assert ended.status == 0, ended.err
        assert "It has the id it had: every byte is as it was" in ended.out
        load_artifact(revised.path).verify()


def test_a_comparison_on_the_run_trains_on_its_revisions_and_says_so(run: Run, rollbook: Any, directory: Path) -> None:
    command = ["compare", directory, "--iteration", "1", "--algorithms", "opa-dpo,raft,grpo", "--set", "train.epochs=1"]
    ended = rollbook(*command, "--no-baseline")
    assert "trained on: an expert's revisions of iteration 1, as in the run" in ended.out, ended.err
    assert "grpo" in ended.out and "grpo needs" in ended.out.replace("\n", " ")  # nobody drew a revision
    comparison = next((directory / "artifacts" / "comparison").iterdir())
    assert {parent.kind for parent in load_artifact(comparison).manifest.content.parents} >= {"revisions", "checkpoint"}


def test_the_report_of_the_run_has_a_section_on_them(run: Run, rollbook: Any, directory: Path) -> None:
    assert rollbook("report", directory).status == 0
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert '<section id="revisions">' in page and "reference logprob: preferred" in page
