"""Rows that do not hold what their tables say, in artifacts whose hashes were all made anew: what a hash cannot find."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.look.audit import pool
from pipeline.look.audit.audit import Audit, audit
from pipeline.look.audit.weights import tensors_of

GROUP_0 = pl.int_range(pl.len()) < 4
FIRST = pl.int_range(pl.len()) == 0
PART = "part-00000.parquet"
IDS, LOGPROBS = pl.col("completion_token_ids"), pl.col("behavior_logprobs")


def only_first(value: Any, column: str) -> pl.Expr:
    """The column with another value in its first row."""
    return pl.when(FIRST).then(value).otherwise(pl.col(column))


def finding(found: Audit, check: str, column: str | None = None) -> Any:
    (one,) = [f for f in found.findings if f.check == check and (column is None or f.column == column)]
    return one


ROLLOUTS: dict[str, tuple[dict[str, pl.Expr], str, str]] = {
    "a logprob above 0": (
        {"behavior_logprobs": only_first(LOGPROBS.list.eval(-pl.element()), "behavior_logprobs")},
        "rows",
        "behavior_logprobs",
    ),
    "a logprob that is NaN": (
        {"behavior_logprobs": only_first(LOGPROBS.list.eval(pl.element() * float("nan")), "behavior_logprobs")},
        "rows",
        "behavior_logprobs",
    ),
    "a token without logprob": ({"behavior_logprobs": only_first(LOGPROBS.list.head(1), "behavior_logprobs")}, "rows", ""),
    "no logprobs": ({"behavior_logprobs": only_first(None, "behavior_logprobs")}, "logprobs", "behavior_logprobs"),
    "a token outside the vocabulary": (
        {"completion_token_ids": only_first(IDS.list.eval(pl.element() + 100), "completion_token_ids")},
        "vocabulary",
        "completion_token_ids",
    ),
    "another text": ({"completion_text": only_first(pl.lit("w5 w5"), "completion_text")}, "text", "completion_text"),
    "another reward": ({"reward": only_first(pl.lit(0.25), "reward")}, "reward sum", "reward"),
    "a component out of range": ({"reward_early": only_first(pl.lit(2.0), "reward_early")}, "reward range", "reward_early"),
    "another policy": ({"policy_id": only_first(pl.lit("x"), "policy_id")}, "origin", "policy_id"),
    "an unknown mode": ({"logprobs_mode": only_first(pl.lit("unknown"), "logprobs_mode")}, "logprobs_mode", "logprobs_mode"),
    "another prompt text": ({"prompt_text": only_first(pl.lit("Q: x A:"), "prompt_text")}, "prompt", "prompt_text"),
    "a prompt that is not there": ({"prompt_id": only_first(pl.lit("nobody"), "prompt_id")}, "prompt", "prompt_id"),
    "a seed twice": ({"seed": pl.when(GROUP_0).then(7).otherwise(pl.col("seed"))}, "seeds", "seed"),
    "a group of another name": (
        {"group_id": pl.when(GROUP_0).then(pl.lit("other")).otherwise(pl.col("group_id"))},
        "group name",
        "group_id",
    ),
    "a row in another group": ({"group_id": only_first(pl.col("group_id").last(), "group_id")}, "rows", "group_id"),
    "a status that is not how it ended": (
        {"status": pl.when(pl.col("status") == "truncated").then(pl.lit("ok")).otherwise(pl.col("status"))},
        "status",
        "status",
    ),
}


@pytest.mark.parametrize("what", ROLLOUTS)
def test_a_wrong_row_of_rollouts_is_found(copied, what: str) -> None:
    columns, check, column = ROLLOUTS[what]
    path = copied.artifact("rollouts", purpose="train")
    copied.rewrite(path, PART, **columns)
    found = audit(path)
    assert found.status == 1
    first = next(f for f in found.findings if f.check == check)
    assert (first.column or "") == column
    assert (first.artifact, first.file) == (f"rollouts/{path.name}", PART)
    assert first.row is not None and first.expected and first.found and first.remedy


@pytest.mark.parametrize("limit", [{}, {"MOST_ROWS": 1}, {"MOST_BYTES": 1}], ids=["together", "few rows", "little memory"])
def test_a_wrong_row_is_named_by_its_own_file_however_many_files_are_checked_together(copied, monkeypatch, limit) -> None:
    for name, value in limit.items():
        monkeypatch.setattr(pool, name, value)
    path = copied.artifact("rollouts", purpose="train")
    third = pl.when(pl.int_range(pl.len()) == 2).then(pl.lit("x")).otherwise(pl.col("policy_id"))
    copied.rewrite(path, "part-00001.parquet", policy_id=third)
    found = audit(path)
    one = finding(found, "origin", "policy_id")
    assert (one.file, one.row, one.found, one.count) == ("part-00001.parquet", 2, "x", 1)
    assert next(count for count in found.counts if count.what == "rows").done == 24


def test_a_group_that_lost_a_row_and_one_that_spans_two_files_are_not_whole(copied) -> None:
    path = copied.artifact("rollouts", purpose="train")
    first, second = (pl.read_parquet(path / name) for name in (PART, "part-00001.parquet"))
    rewrite(copied, path / PART, first.tail(-1))
    rewrite(copied, path / "part-00001.parquet", pl.concat([second, first.head(1)]))
    found = audit(path)
    assert finding(found, "group in one file").found.endswith("in 2 files")
    rewrite(copied, path / "part-00001.parquet", second)
    found = audit(path)
    whole = finding(found, "group whole")
    assert whole.expected == "samples 0 to 3" and "3 rows" in whole.found
    assert finding(found, "summary", "content.summary.completions").expected == "23"
    assert finding(found, "count").expected == "16 rows"


def test_shaped_rows_and_pairs_belong_to_completions(copied) -> None:
    path = copied.artifact("shaped")
    copied.rewrite(path, PART, sample_index=only_first(pl.lit(99, pl.Int32), "sample_index"))
    copied.rewrite(path, "pairs-00000.parquet", rejected_index=only_first(pl.lit(98, pl.Int32), "rejected_index"))
    found = audit(path)
    lost = [f for f in found.findings if f.check == "aligned"]
    assert {f.file for f in lost} == {PART, None}
    assert finding(found, "pair").column == "rejected_index"


def test_a_dropped_row_carries_no_advantage(copied) -> None:
    path = copied.artifact("shaped")
    dropped = {"keep": pl.lit(False), "drop_reason": pl.lit("unpaired"), "advantage": pl.lit(0.5, pl.Float32)}
    copied.rewrite(path, PART, **dropped)
    assert finding(audit(path), "dropped", "advantage").count == 16


def test_scores_are_as_long_as_their_completions(copied) -> None:
    path = copied.artifact("scores")
    copied.rewrite(path, PART, logprobs=only_first(pl.col("logprobs").list.concat([-1.0]), "logprobs"))
    assert finding(audit(path), "aligned", "logprobs").row == 0


def test_an_evaluation_holds_what_the_answers_hold(copied) -> None:
    path = copied.artifact("evaluation")
    copied.rewrite(
        path,
        "evaluation.parquet",
        reward=only_first(pl.lit(9.0), "reward"),
        solved=only_first(pl.lit(True), "solved"),
        sample_index=pl.when(pl.int_range(pl.len()) == 3).then(50).otherwise(pl.col("sample_index")).cast(pl.Int32),
    )
    found = audit(path)
    assert finding(found, "answers", "reward").found == "9.0"
    assert {f.row for f in found.findings if f.check == "aligned"} == {3, None}


def test_a_comparison_has_the_figures_of_what_it_names(copied) -> None:
    path = copied.artifact("comparison")
    copied.rewrite(path, "comparison.parquet", pass_at_1=pl.lit(0.99), loss=pl.lit(3.0))
    copied.remake(path, lambda content: content["summary"]["algorithms"][0].update(greedy=0.99))
    found = audit(path)
    assert {f.column for f in found.findings if f.check == "trial"} == {"pass_at_1", "loss"}
    assert any(f.check == "summary" and f.column.endswith("greedy") for f in found.findings if f.column)


def test_a_checkpoint_is_shaped_like_its_parent_and_has_its_tokenizer_and_steps_without_a_gap(copied) -> None:
    from safetensors.numpy import load_file, save_file

    path = copied.artifact("checkpoint", iteration=1)
    weights = load_file(path / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: np.zeros((1, 2), np.float32)}, path / "model.safetensors", {"format": "pt"})
    (path / "tokenizer.json").write_text("{}", encoding="utf-8")
    copied.rewrite(path, "metrics.parquet", step=pl.col("step") + 1, loss=only_first(float("inf"), "loss"))
    found = audit(path)
    assert finding(found, "weights").found == f"{name} [1, 2]"
    assert finding(found, "tokenizer").file == "tokenizer.json"
    assert finding(found, "steps").expected == "step 0"
    assert finding(found, "finite").column == "loss"


def test_an_imported_model_is_the_one_its_recipe_names(copied) -> None:
    path = copied.artifact("checkpoint", iteration=0)
    (path / "config.json").write_text("{}", encoding="utf-8")
    copied.remake(path)
    assert finding(audit(path), "imported").file == "config.json"


def test_prompts_are_rendered_as_the_recipe_says_and_apart_from_those_trained_on(copied) -> None:
    path = next(p for p in sorted((copied.store / "prompts").iterdir()) if "disjoint_from" in (p / "manifest.json").read_text())
    copied.rewrite(path, "prompts.parquet", question=only_first(pl.lit("w0 w3"), "question"))
    found = audit(path)
    assert finding(found, "disjoint").found == "w0 w3"
    assert finding(found, "template").column == "prompt_text"


def test_a_table_of_another_version_cannot_be_judged_and_one_with_other_columns_is_wrong(copied) -> None:
    path = copied.artifact("scores")
    copied.remake(path, lambda content: content["files"][0].update(table="scores/99"))
    found = audit(path)
    assert (found.status, finding(found, "version").severity) == (2, "unknown")
    copied.remake(path, lambda content: content["files"][0].update(table="scores/1"))
    frame = pl.read_parquet(path / PART)
    frame.drop("sample_index").write_parquet(path / PART)
    copied.remake(path)
    assert finding(audit(path), "columns").column == "sample_index"


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b'{"a": {"dtype": "F32"}}']
)
def test_a_safetensors_header_that_does_not_describe_the_file_is_refused(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    with pytest.raises(ValueError):
        tensors_of(len(data), partial(first_of, data))
    for short in ((1 << 60).to_bytes(8, "little"), b"short", b""):
        with pytest.raises(ValueError, match="a header of"):
            tensors_of(len(short), partial(first_of, short))


def first_of(data: bytes, count: int) -> bytes:
    return data[:count]


def rewrite(copied, file, frame: pl.DataFrame) -> None:
    """Put other rows into a table file; its manifest states the old number of rows."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    pq.write_table(frame.to_arrow().cast(schema), file)
    copied.remake(file.parent)


@pytest.mark.parametrize(
    ("place", "value"), [(("pass_at", "1"), 0.123), (("pass_at", "2"), 0.123), (("greedy",), 0.123), (("greedy",), None)]
)
def test_pass_at_k_and_greedy_are_counted_again(copied, place: tuple[str, ...], value: float | None) -> None:
    path = copied.artifact("evaluation")

    def forge(content: dict[str, Any]) -> None:
        *before, last = place
        figures = content["summary"]
        for name in before:
            figures = figures[name]
        figures[last] = None if value is None else {**figures[last], "value": value}

    copied.remake(path, forge)
    found = finding(audit(path), "summary")
    assert found.column == f"content.summary.{'.'.join(place)}.value" and found.found == str(value)


def test_a_pass_at_k_of_the_recipe_that_is_not_there_is_found(copied) -> None:
    path = copied.artifact("evaluation")
    copied.remake(path, lambda content: content["summary"]["pass_at"].pop("2"))
    assert finding(audit(path), "summary").found == "None"
