"""Corrections in a run: where they stand in the lineage, and that a changed weight, text or role is found."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.look.audit.audit import audit
from pipeline.look.audit.findings import Ledger
from pipeline.look.audit.gather import gather
from pipeline.look.audit.lineage import graph_of
from pipeline.look.audit.scope import scope_of
from pipeline.run.record import load_run

PART, BESIDE = "part-00000.parquet", "revisions-00000.parquet"
FIRST = pl.int_range(pl.len()) == 0


def test_a_run_of_corrections_is_sound_and_all_that_follows_from_them_is_made_again(made_of_revisions: Any) -> None:
    found = audit(made_of_revisions, deep=True, samples=8, steps=1)
    assert found.status == 0, [finding for finding in found.findings if finding.severity != "note"]
    done = {count.what: (count.done, count.total) for count in found.counts if count.area == "derivation"}
    assert done["revisions artifacts made again"] == (1, 1)
    assert done["training steps taken again"][0] == 1


def test_a_checkpoints_lineage_shows_corrections_reference_and_pairs(made_of_revisions: Any) -> None:
    run = load_run(made_of_revisions)
    first, last = run.iterations
    shelf = gather(scope_of(str(made_of_revisions)), Ledger()).shelf
    graph = graph_of([held for held in shelf.all if held.id == last.policy.id], shelf)
    node = graph.nodes[last.policy.id]
    assert {parent.role: parent.kind for parent in node.parents} == {
        "policy": "checkpoint",
        "rollouts": "revisions",
        "shaped": "shaped",
        "proximal": "scores",
    }
    assert first.revised is not None and first.answers is not None and first.answers.rollouts is not None
    assert first.trained_on is first.revised
    parents = {parent.role: parent.id for parent in first.revised.manifest.content.parents}
    assert parents["rollouts"] == first.answers.rollouts.id
    assert parents["policy"] == first.policy.id


def test_changed_weights_and_roles_are_found(copied_revisions: Any) -> None:
    path = copied_revisions.artifact("revisions")
    longer = pl.col("token_weights").list.concat(pl.lit([1.0], pl.List(pl.Float32)))
    copied_revisions.rewrite(path, BESIDE, token_weights=pl.when(FIRST).then(longer).otherwise(pl.col("token_weights")))
    found = audit(path)
    assert [(one.check, one.row, one.column) for one in found.findings if one.severity == "error"] == [
        ("aligned", 0, "token_weights")
    ]


def test_a_correction_that_its_rule_does_not_give_is_found(copied_revisions: Any) -> None:
    path = copied_revisions.artifact("revisions")
    half = pl.col("token_weights").list.eval(pl.element() * 0.5)
    copied_revisions.rewrite(path, BESIDE, token_weights=pl.when(FIRST).then(half).otherwise(pl.col("token_weights")))
    found = audit(copied_revisions.run, deep=True, samples=1, steps=1)
    assert "token_weights" in {one.column for one in found.findings if one.check == "recomputed"}
