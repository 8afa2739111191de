"""Derivation: artifacts that agree with themselves and with every hash, but not with what they were made from."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from pipeline.algorithms import ALGORITHMS, resolve
from pipeline.look.audit.audit import Audit, audit
from pipeline.look.audit.deep.declared import shaped_by, trained_by
from pipeline.look.audit.deep.replay import _differing, _steps_without_moments
from pipeline.look.audit.deep.rerun import CannotRerun
from pipeline.look.audit.findings import Finding
from pipeline.run.order import STAGES

FIRST = pl.int_range(pl.len()) == 0
PART = "part-00000.parquet"


def derived(found: Audit, check: str) -> list[Finding]:
    return [f for f in found.findings if (f.area, f.check) == ("derivation", check) and f.severity != "note"]


def test_a_run_that_is_what_it_claims_to_be_is_recomputed_to_the_same_figures(made) -> None:
    found = audit(made, deep=True, samples=0, steps=99)
    assert found.status == 0
    done = {count.what: (count.done, count.total) for count in found.counts if count.area == "derivation"}
    assert done == {
        "completions whose logprobs were recomputed": (78, 78),
        "evaluation artifacts made again": (2, 2),
        "rewards graded again": (54, 54),
        "rollouts whose prompts and seeds were drawn again": (5, 5),
        "shaped artifacts made again": (1, 1),
        "training steps taken again": (4, 4),
        "weights that were looked at for NaN and infinity": (30, 30),
    }
    scores = next(one for one in found.distributions if one.what == "logprobs")
    assert scores.mean < 1e-6  # other completions lie beside them than when they were scored
    for one in found.distributions:
        assert one.quantiles["largest"] < 1e-4 and sum(one.counts) == one.tokens


def test_of_a_training_that_went_on_from_moments_the_first_step_is_taken_again() -> None:
    """Its figures are from before the update, in which moments count. They are kept for the newest checkpoint only."""
    plain = {"schedule": "constant", "warmup_steps": 0}
    assert _steps_without_moments({**plain, "optimizer_state": "carry"}) == 1
    assert _steps_without_moments(plain) > 10**9
    with pytest.raises(CannotRerun, match="went on from an optimizer's state"):
        _steps_without_moments({**plain, "schedule": "cosine", "optimizer_state": "carry"})


def test_what_does_not_follow_from_its_parents_is_found(copied) -> None:
    """Every artifact stays consistent in itself: only recomputing tells. One audit finds all of it."""
    shaped, rollouts = copied.artifact("shaped"), copied.artifact("rollouts", purpose="sampled", policy_version=0)
    checkpoint, scores = copied.artifact("checkpoint", iteration=1), copied.artifact("scores")
    evaluation = copied.artifact("evaluation")
    ids = {path: identity(path) for path in (shaped, rollouts, checkpoint, scores, evaluation)}
    advantage = pl.when(pl.col("keep")).then(pl.col("advantage") + 0.5).otherwise(0.0).cast(pl.Float32)
    copied.rewrite(shaped, PART, advantage=advantage)
    logprobs = pl.col("behavior_logprobs").list.eval(pl.element() - 0.5)
    copied.rewrite(
        rollouts,
        PART,
        behavior_logprobs=pl.when(FIRST).then(logprobs).otherwise(pl.col("behavior_logprobs")),
        reward=pl.when(FIRST).then(1 - pl.col("reward_early") + 0.5 * pl.col("reward_late")).otherwise(pl.col("reward")),
        reward_early=pl.when(FIRST).then(1 - pl.col("reward_early")).otherwise(pl.col("reward_early")),
        seed=pl.when(FIRST).then(12345).otherwise(pl.col("seed")),
    )
    copied.rewrite(checkpoint, "metrics.parquet", loss=pl.col("loss") + 0.25)
    copied.rewrite(scores, PART, logprobs=pl.col("logprobs").list.eval(pl.element() - 0.1))
    keep_ids(copied, ids)
    found = audit(copied.run, deep=True, samples=0, steps=1)
    (recomputed,) = [f for f in derived(found, "recomputed") if f.column == "advantage"]
    assert (recomputed.artifact, recomputed.file) == (f"shaped/{shaped.name}", PART)
    assert derived(found, "seed")[0].found == "12345"
    assert derived(found, "reward")[0].column == "reward_early"
    assert {f.artifact for f in derived(found, "logprobs")} == {f"rollouts/{rollouts.name}", f"scores/{scores.name}"}
    assert "loss" in {f.column for f in derived(found, "replay")}


def identity(path: Any) -> str:
    return str(json.loads((path / "manifest.json").read_text("utf-8"))["id"])


def keep_ids(copied: Any, before: dict[Any, str]) -> None:
    """Have everything name the new ids, children made anew in turn: a forger with patience."""
    for _ in range(6):
        known = {old: identity(path) for path, old in before.items()}
        for manifest in sorted(copied.store.glob("*/*/manifest.json")):

            def renamed(content: dict[str, Any], known: dict[str, str] = known) -> None:
                for parent in content["parents"]:
                    parent["id"] = known.get(parent["id"], parent["id"])

            old = identity(manifest.parent)
            copied.remake(manifest.parent, renamed)
            if identity(manifest.parent) != old:
                before.setdefault(manifest.parent, old)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_is_known_again_by_its_recipe(name: str) -> None:
    algorithm = ALGORITHMS[name]
    shaping = json.loads(json.dumps({"choices": {}, **algorithm.shaping_recipe()}))
    loss = json.loads(json.dumps(algorithm.recipe()))
    shaped = [resolve(*named) for named in shaped_by(shaping)]
    trained = [resolve(*named) for named in trained_by(loss)]
    assert shaped and all(one.shaping_recipe() == algorithm.shaping_recipe() for one in shaped)
    assert trained and all(one.recipe() == algorithm.recipe() for one in trained)


def test_settings_are_known_again_too() -> None:
    algorithm = resolve("rec-oneside-nois", {"low": 0.6, "high": 2.0})
    assert next(trained_by(json.loads(json.dumps(algorithm.recipe())))) == (
        "rec-oneside-nois",
        {"trust_region.low": 0.6, "trust_region.high": 2.0},
    )
    assert list(trained_by({"kernel": "policy_gradient", "trust_region": {"cell": "Unheard"}})) == []


def test_elsewhere_figures_may_differ_by_rounding_but_the_plan_may_not() -> None:
    stored = {"step": 0, "tokens": 100, "loss": 1.0, "entropy": 2.0}
    again = {"step": 0, "tokens": 100, "loss": 1.0005, "entropy": 2.0}
    names = [name for name, _, _ in _differing(again, filled(stored), 1e-3)]
    assert "loss" not in names
    assert "loss" in [name for name, _, _ in _differing(again, filled(stored), 0.0)]
    assert "tokens" in [name for name, _, _ in _differing({**again, "tokens": 101}, filled(stored), 1e-3)]


def filled(row: dict[str, Any]) -> dict[str, Any]:
    from schemas import Metrics

    return {name: row.get(name) for name in Metrics.columns()}


def test_what_another_version_of_a_stage_made_is_noted_and_not_done_again(made, monkeypatch) -> None:
    for name in ("generate", "shape", "train", "evaluate"):
        monkeypatch.setitem(STAGES, name, f"{name}/99")
    found = audit(made, deep=True, samples=1, steps=1)
    assert found.status == 0
    notes = {f.artifact.partition("/")[0] for f in found.findings if f.check == "stage" and f.artifact}
    assert notes == {"rollouts", "shaped", "checkpoint", "evaluation"}
    done = {count.what: count.done for count in found.counts if count.area == "derivation"}
    again = ("evaluation artifacts made again", "shaped artifacts made again", "training steps taken again")
    assert [done[what] for what in (*again, "rollouts whose prompts and seeds were drawn again")] == [0, 0, 0, 0]
    reasons = [f.found for f in found.findings if f.check == "not recomputed"]
    assert len(reasons) == 9 and all("/99" in reason for reason in reasons)
