"""Rollouts made of other rollouts: graded again, with logprobs filled in, without damaged shards."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.reward import RewardConfig
from pipeline.exchange.imports.scored import with_scores
from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.look.audit import rows
from pipeline.look.audit.audit import Audit, audit
from pipeline.look.upkeep.repair import drop_shards, find_damage
from pipeline.regrade.plan import grade_request, job_of
from pipeline.regrade.stage import grade
from pipeline.run.process import Reporter
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Scores

PART, ORIGINS = "part-00000.parquet", "origins-00000.parquet"
FIRST = pl.int_range(pl.len()) == 0
REWARD = {"components": [{"grader": "regex", "args": {"pattern": "yes", "compare": False}}]}


@dataclass(frozen=True)
class Chain:
    """Imported completions, scored, and graded."""

    store: Path
    imported: Path
    scored: Path
    graded: Path


def answers() -> list[dict[str, Any]]:
    """Some with logprobs, some without, one with no tokens."""
    asked = [(prompt, sample) for prompt in range(4) for sample in range(2)]
    return [
        {
            "prompt_text": f"q{prompt}",
            "completion_text": ("yes", "no")[sample],
            "prompt_token_ids": [1, prompt],
            "completion_token_ids": [] if (prompt, sample) == (3, 1) else [2, sample + 1],
            "reward": float(sample),
            **({"behavior_logprobs": [-0.5, -0.25], "logprobs_mode": "raw_logprobs"} if prompt == 0 else {}),
        }
        for prompt, sample in asked
    ]


def scores_of(store: Store, rollouts: Artifact, checkpoint: Artifact) -> Artifact:
    """What a scores artifact would hold."""
    request = Request(
        "scores", "score/1", {"dtype": "float32"}, (checkpoint.as_parent("checkpoint"), rollouts.as_parent("rollouts"))
    )
    given = pl.read_parquet(rollouts.path / PART).filter(pl.col("completion_token_ids").list.len() > 0)
    values = given["completion_token_ids"].list.eval(pl.element().cast(pl.Float32) * -0.125)
    frame = given.select("group_id", "sample_index", logprobs=values)
    with store.work(request) as work:
        assert isinstance(work, Work)
        work.write_table(PART, frame, Scores)
        return work.finish({"completions": len(frame), "tokens": int(frame["logprobs"].list.len().sum())})


@pytest.fixture
def chained(tmp_path: Path) -> Chain:
    source, store = tmp_path / "answers.jsonl", Store(tmp_path / "store")
    source.write_text("".join(json.dumps(row) + "\n" for row in answers()), encoding="utf-8")
    imported, _ = import_rollouts(store, order_of((source,), "plain"))
    with store.work(Request("checkpoint", "import-by-hand/1", {"iteration": 0})) as work:
        assert isinstance(work, Work)
        (work.path / "config.json").write_text("{}", encoding="utf-8")
        checkpoint = work.finish({"iteration": 0})
    scored = with_scores(store, imported, scores_of(store, imported, checkpoint), checkpoint)
    return Chain(Path(store.root), imported.path, scored.path, graded(store, scored))


def graded(store: Store, rollouts: Artifact) -> Path:
    reward = RewardConfig.model_validate(REWARD)
    job = job_of(rollouts, grade_request(rollouts, reward), [store])
    spec = {"store": str(store.root), "reward": reward.model_dump(mode="json"), "jobs": [job]}
    return Path(grade(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifacts"][0])


def copied_columns(found: Audit) -> set[str | None]:
    return {f.column for f in found.findings if f.check == "copied" and f.severity == "error"}


def first(column: str, value: Any) -> dict[str, pl.Expr]:
    return {column: pl.when(FIRST).then(value).otherwise(pl.col(column))}


@pytest.mark.parametrize("deep", [False, True])
def test_a_chain_of_rollouts_is_sound(chained: Chain, deep: bool) -> None:
    found = audit(chained.store, deep=deep)
    assert (found.count("error"), found.count("warning")) == (0, 0)
    done = {count.what: (count.done, count.total) for count in found.counts}
    assert done["rollouts compared with those they were made of"] == (2, 2)
    assert done["files of logprobs compared with the scores"] == (1, 1)
    assert not deep or done["rewards graded again"][0] == 8


GRADED = {
    "completion_token_ids": pl.lit([5, 5], pl.List(pl.Int32)),
    "behavior_logprobs": pl.lit([-9.0, -9.0], pl.List(pl.Float32)),
    "prompt_text": pl.lit("another"),
    "policy_id": pl.lit("another"),
    "temperature": pl.lit(0.5),
    "status": pl.lit("truncated"),
}


@pytest.mark.parametrize("column", GRADED)
def test_a_graded_completion_is_the_one_that_was_graded(chained: Chain, copied: Any, column: str) -> None:
    copied.rewrite(chained.graded, PART, **first(column, GRADED[column]))
    found = audit(chained.store)
    (finding,) = [f for f in found.findings if f.check == "copied"]
    assert (finding.artifact, finding.file) == (f"rollouts/{chained.graded.name}", PART)
    assert (finding.row, finding.column, finding.count) == (0, column, 1) and finding.found


SCORED = {
    "reward": pl.lit(0.75),
    "logprobs_mode": pl.lit("scored"),
    "behavior_logprobs": pl.lit([-9.0, -9.0], pl.List(pl.Float32)),
}


@pytest.mark.parametrize("column", SCORED)
def test_scoring_changes_nothing_but_what_was_lacking(chained: Chain, copied: Any, column: str) -> None:
    copied.rewrite(chained.scored, PART, **first(column, SCORED[column]))
    assert column in copied_columns(audit(chained.store))


def test_logprobs_that_were_filled_in_are_those_of_the_scores(chained: Chain, copied: Any) -> None:
    third = pl.when(pl.int_range(pl.len()) == 2).then(pl.lit([-9.0, -9.0], pl.List(pl.Float32)))
    copied.rewrite(chained.scored, PART, behavior_logprobs=third.otherwise(pl.col("behavior_logprobs")))
    (finding,) = [f for f in audit(chained.store).findings if f.check == "copied"]
    assert (finding.row, finding.column, finding.found) == (2, "behavior_logprobs", "[-9.0, -9.0]")


def test_origins_of_scored_completions_are_those_of_the_import(chained: Chain, copied: Any) -> None:
    copied.rewrite(chained.scored, ORIGINS, **first("number", pl.lit(99, pl.Int64)))
    assert copied_columns(audit(chained.store)) == {"number"}


def test_of_large_rollouts_lists_are_compared_by_a_deep_audit(
    chained: Chain, copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "READ_WHOLE", 1)
    copied.rewrite(
        chained.graded, PART, **first("completion_token_ids", GRADED["completion_token_ids"]), **first("prompt_text", pl.lit("x"))
    )
    assert copied_columns(audit(chained.store)) == {"prompt_text"}
    assert copied_columns(audit(chained.store, deep=True)) == {"prompt_text", "completion_token_ids"}


@pytest.mark.parametrize("name", ["completions", "reward_mean", "without_logprobs", "without_sampling", "scored", "retokenized"])
def test_every_stage_that_states_figures_has_them_counted_again(chained: Chain, copied: Any, name: str) -> None:
    copied.remake(chained.scored, lambda content: content["summary"].update({name: 77}))
    found = audit(chained.scored)
    assert [f.column for f in found.findings if f.check == "summary"] == [f"content.summary.{name}"]


def test_completions_are_counted_without_the_rows_of_other_tables(chained: Chain) -> None:
    found = audit(chained.store, deep=True)
    done = {count.what: (count.done, count.total) for count in found.counts if count.area == "derivation"}
    assert done["rewards graded again"] == (8, 24)


def repaired(copied: Any) -> Path:
    """Training rollouts without their second shard, which was damaged."""
    path = copied.artifact("rollouts", purpose="train")
    data = bytearray((path / "part-00001.parquet").read_bytes())
    data[200] ^= 4
    (path / "part-00001.parquet").write_bytes(data)
    return drop_shards(find_damage(load_artifact(path))).path


def test_repaired_rollouts_are_sound(copied: Any) -> None:
    assert audit(repaired(copied)).status == 0


def test_a_shard_of_repaired_rollouts_is_one_of_the_damaged_artifact(copied: Any) -> None:
    path = repaired(copied)
    copied.rewrite(path, PART, seed=pl.col("seed") + 1)
    (finding,) = [f for f in audit(path).findings if f.check == "copied"]
    assert (finding.severity, finding.file) == ("error", PART)


def test_repaired_rollouts_name_every_shard_that_they_lack(copied: Any) -> None:
    path = repaired(copied)
    copied.remake(path, lambda content: content["recipe"]["repair"].update(dropped=[]))
    (finding,) = [f for f in audit(path).findings if f.check == "copied"]
    assert (finding.file, finding.expected) == ("part-00001.parquet", "every file that was not dropped")


def test_rewards_that_cannot_be_graded_again_are_noted(copied: Any) -> None:
    path = copied.artifact("rollouts", purpose="train")
    for prompts in (copied.store / "prompts").iterdir():
        (prompts / "manifest.json").unlink()
    found = audit(path, deep=True, samples=1, steps=0)
    notes = [f.found for f in found.findings if f.check == "not recomputed" and f.expected == "rewards graded again"]
    assert notes == ["not done: its prompts are not here whole"]
