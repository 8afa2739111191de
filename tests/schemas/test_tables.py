"""Every table, with one row of each written by hand: what it accepts, what it refuses and which reason it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import TABLES, Evaluation, Metrics, Prompts, Rollouts, Shaped, Table

PROMPT = {"prompt_id": "p1", "question": "1+1", "answer": "2", "prompt_text": "Q:1+1=", "metadata": '{"level": 3}'}
SET_ASIDE = {"place": "line 3", "why": "answer is null", "content": '{"question": "1+1"}'}
ROLLOUT = {
    "group_id": "g1",
    "sample_index": 0,
    "prompt_id": "p1",
    "prompt_token_ids": [5, 6],
    "completion_token_ids": [7, 8, 9],
    "behavior_logprobs": [-0.5, 0.0, -2.25],
    "action_mask": None,
    "prompt_text": "Q:1+1=",
    "completion_text": "2 ✓",
    "answer": "2",
    "finish_reason": "stop",
    "reward": 1.0,
    "policy_id": "c0ffee",
    "policy_version": 0,
    "source": "self",
    "seed": 2**62,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "logprobs_mode": "processed_logprobs",
    "engine": "by hand",
    "status": "ok",
    "error": None,
}
SCORES = {"group_id": "g1", "sample_index": 0, "logprobs": [-0.5, 0.0, -2.25]}
SHAPED = {"group_id": "g1", "sample_index": 0, "advantage": -0.5, "weight": 1.0, "keep": True, "drop_reason": None}
EVALUATION = {
    "prompt_id": "p1",
    "mode": "greedy",
    "sample_index": 0,
    "reward": None,
    "solved": False,
    "completion_tokens": 3,
    "status": "reward_error",
}
METRICS = {
    "step": 0,
    "epoch": 0,
    "groups": 2,
    "completions": 4,
    "computed": 3,
    "left_out": 1,
    "tokens": 12,
    "loss": float("nan"),
    "grad_norm": float("inf"),
    "learning_rate": 1e-6,
    "reward_mean": None,
    "advantage_mean": 0.0,
    "completion_tokens_mean": 3.0,
    "age_mean": 0.5,
    "age_max": 1,
    "entropy": 1.5,
}
PAIRS = {"group_id": "g1", "chosen_index": 0, "rejected_index": 1, "preference": 1.0, "margin": 0.5}
REVISIONS = {
    "group_id": "g1",
    "sample_index": 1,
    "role": "revised",
    "token_weights": [1.0, 2.5],
    "change": 0.5,
    "said": None,
    "note": None,
}
ORIGINS = {"group_id": "g1", "sample_index": 0, "file": "a.jsonl", "number": 3, "tokens": "retokenized", "rest": None}
TURN = {
    "group_id": "g1",
    "sample_index": 0,
    "turn": 1,
    "start": 13,
    "length": 4,
    "who": "policy",
    "name": None,
    "reward": 0.5,
    "status": "ok",
}
REMARKS = {"group_id": "g1", "sample_index": 0, "component": "reward_judge", "text": "good"}
COMPARISON = {"label": "grpo:low=0.1", "algorithm": "grpo", "seed": 0, "epoch": 4, "status": "failed", "error": "no logprobs"}
COMPARISON_TIMING = {"label": "grpo:low=0.1", "seed": 0, "epoch": 4, "train_seconds": 12.5}
TIMING = {"step": 0, "seconds": 0.5, "tokens_per_second": 24.0, "data_seconds": 0.0}
CREDIT: dict[str, Any] = {
    "group_id": "g",
    "sample_index": 0,
    "turn": 2,
    "start": 17,
    "length": 8,
    "advantage": 0.75,
    "keep": True,
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "prompts": PROMPT,
    "setaside": SET_ASIDE,
    "rollouts": ROLLOUT,
    "scores": SCORES,
    "shaped": SHAPED,
    "evaluation": EVALUATION,
    "pairs": PAIRS,
    "revisions": REVISIONS,
    "remarks": REMARKS,
    "turns": TURN,
    "credits": CREDIT,
    "origins": ORIGINS,
    "metrics": METRICS,
    "timing": TIMING,
    "comparison": COMPARISON,
    "comparisontiming": COMPARISON_TIMING,
}


def test_every_table_has_an_example() -> None:
    assert set(EXAMPLES) == set(TABLES)


def frame_of(table: type[Table], *changes: dict[str, Any]) -> pl.DataFrame:
    """The table's example, once per set of changes."""
    types: dict[str, Any] = {name: column.dtype for name, column in table.columns().items()}
    rows = [{**dict.fromkeys(types), **EXAMPLES[table.title()], **change} for change in changes]
    extra = {name: pl.Float64 for row in rows for name in row if name not in types}
    return pl.DataFrame(rows, schema=types | extra)


def reasons(table: type[Table], **change: Any) -> str:
    """Why the table refuses its example once that is changed; '' if it does not."""
    bad = table.check(frame_of(table, change)).bad
    return "" if bad.is_empty() else bad["reasons"][0]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_column_says_what_it_holds(table: type[Table]) -> None:
    for field in table.arrow_schema():
        description = (field.metadata or {}).get(b"description", b"").decode()
        assert description.endswith("."), f"{table.title()}.{field.name}: {description!r}"


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_row_survives_parquet_with_the_descriptions(table: type[Table], tmp_path: Path) -> None:
    frame = frame_of(table, {})
    assert table.check(frame).bad.is_empty()
    pq.write_table(table.to_arrow(frame), tmp_path / "table.parquet")
    schema = pq.read_schema(tmp_path / "table.parquet")
    assert schema.metadata[b"rollbook.table"].decode() == table.title()
    assert schema.metadata[b"rollbook.version"] == b"1"
    assert all(field.metadata[b"description"] for field in schema)
    assert table.differences(schema) == []
    assert pl.read_parquet(tmp_path / "table.parquet").equals(frame, null_equal=True)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_null_is_refused_exactly_where_the_column_is_not_nullable(table: type[Table]) -> None:
    refused = {name for name in table.columns() if f"{name} is null" in reasons(table, **{name: None}).split("; ")}
    assert refused == {field.name for field in table.arrow_schema() if not field.nullable}


def test_units_are_in_the_arrow_schema() -> None:
    assert Rollouts.arrow_schema().field("behavior_logprobs").metadata[b"unit"] == b"nats"
    assert b"unit" not in Rollouts.arrow_schema().field("group_id").metadata


def test_the_split_keeps_row_numbers_and_gives_every_reason() -> None:
    frame = frame_of(
        Rollouts,
        {},
        {"sample_index": 1, "behavior_logprobs": [-0.5]},
        {"sample_index": 2},
        {"sample_index": -3, "source": "elsewhere", "reward": None},
    )
    good, bad = Rollouts.check(frame)
    assert good.equals(frame[[0, 2]], null_equal=True)
    assert bad["row"].to_list() == [1, 3]
    assert bad["reasons"][0] == "breaks the rule: one logprob per completion token"
    assert sorted(bad["reasons"][1].split("; ")) == [
        "breaks the rule: a graded completion has a finite reward",
        "sample_index is below its minimum",
        "source is none of its allowed values",
    ]
    assert bad.drop("row", "reasons").equals(frame[[1, 3]], null_equal=True)


def test_a_frame_without_bad_rows_comes_back_whole() -> None:
    frame = frame_of(Shaped, {}, {"sample_index": 1})
    good, bad = Shaped.check(frame)
    assert good.equals(frame)
    assert bad.is_empty()
    assert bad.columns == ["row", *frame.columns, "reasons"]


def test_an_empty_frame_fits() -> None:
    assert Rollouts.check(frame_of(Rollouts)).bad.is_empty()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"behavior_logprobs": [0.5, 0.0, 0.0]}, "a value inside behavior_logprobs is above its maximum"),
        ({"behavior_logprobs": [None, 0.0, 0.0]}, "a value inside behavior_logprobs is null"),
        ({"behavior_logprobs": [0.0] * 4}, "breaks the rule: one logprob per completion token"),
        ({"completion_token_ids": [7, -8, 9]}, "a value inside completion_token_ids is below its minimum"),
        ({"action_mask": [True]}, "breaks the rule: one mask value per completion token"),
        ({"reward": None}, "breaks the rule: a graded completion has a finite reward"),
        ({"status": "reward_error"}, "breaks the rule: a failed completion says why"),
        ({"reward": None, "status": "truncated"}, "breaks the rule: a graded completion has a finite reward"),
        ({"temperature": -1.0}, "temperature is below its minimum"),
        ({"policy_version": -1}, "policy_version is below its minimum"),
        ({"source": "Self"}, "source is none of its allowed values"),
        ({"status": "fine"}, "status is none of its allowed values"),
        ({"logprobs_mode": "processed"}, "logprobs_mode is none of its allowed values"),
    ],
    ids=str,
)
def test_a_rollout_is_refused_for(change: dict[str, Any], reason: str) -> None:
    assert reasons(Rollouts, **change) == reason


@pytest.mark.parametrize(
    "change",
    [
        {"behavior_logprobs": None, "logprobs_mode": "unknown"},
        {"completion_token_ids": [], "behavior_logprobs": []},
        {"action_mask": [True, False, True]},
        {"reward": None, "status": "reward_error", "error": "timed out"},
        {"reward": None, "status": "engine_error", "error": "too long", "completion_token_ids": [], "behavior_logprobs": []},
        {"temperature": 0.0},
        {"seed": None, "temperature": None, "top_p": None, "top_k": None, "min_p": None, "source": "import"},
    ],
    ids=str,
)
def test_a_rollout_is_accepted_with(change: dict[str, Any]) -> None:
    assert reasons(Rollouts, **change) == ""


def test_a_logprob_is_a_number() -> None:
    assert "a value inside behavior_logprobs is NaN" in reasons(Rollouts, behavior_logprobs=[float("nan"), 0.0, 0.0])


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_is_finite(reward: float) -> None:
    assert "breaks the rule: a graded completion has a finite reward" in reasons(Rollouts, reward=reward)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": " \n"}, "breaks the rule: question is not empty"),
        ({"answer": ""}, "breaks the rule: answer is not empty"),
        ({"prompt_id": ""}, "prompt_id fails min length"),
    ],
    ids=str,
)
def test_a_prompt_is_refused_for(change: dict[str, Any], reason: str) -> None:
    assert reasons(Prompts, **change) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keep": False}, "breaks the rule: a dropped row says why"),
        ({"drop_reason": "truncated"}, "breaks the rule: a dropped row says why"),
        ({"weight": -1.0}, "weight is below its minimum"),
        ({"advantage": float("nan")}, "advantage is NaN"),
        ({"advantage": float("-inf")}, "advantage is infinite"),
    ],
    ids=str,
)
def test_a_shaped_row_is_refused_for(change: dict[str, Any], reason: str) -> None:
    assert reasons(Shaped, **change) == reason


def test_an_evaluation_is_sampled_or_greedy() -> None:
    assert reasons(Evaluation, mode="beam") == "mode is none of its allowed values"


def test_only_loss_and_gradient_may_be_infinite() -> None:
    assert reasons(Metrics, entropy=float("inf")) == "entropy is infinite"
    assert reasons(Metrics, loss=float("-inf"), grad_norm=float("nan")) == ""


def test_rows_with_the_same_key_are_all_bad() -> None:
    frame = frame_of(Rollouts, {}, {"sample_index": 1}, {})
    bad = Rollouts.check(frame).bad
    assert bad["row"].to_list() == [0, 2]
    assert set(bad["reasons"]) == {"group_id + sample_index is there twice"}


def test_a_rule_that_evaluates_to_null_is_broken() -> None:
    """status is null, so whether the completion was graded is not known: not a reason to let it pass."""
    assert "breaks the rule: a graded completion has a finite reward" in reasons(Rollouts, status=None, reward=None)
    assert "breaks the rule: a dropped row says why" in reasons(Shaped, keep=None)
    assert "breaks the rule: question is not empty" in reasons(Prompts, question=None)


def test_reward_columns_are_extra_and_come_last_by_name() -> None:
    frame = frame_of(Rollouts, {"reward_style": 0.5, "reward_exact": None}, {"sample_index": 1, "reward_style": 0.0})
    assert Rollouts.check(frame).bad.is_empty()
    table = Rollouts.to_arrow(frame)
    assert table.column_names == [*Rollouts.columns(), "reward_exact", "reward_style"]
    assert table.column("reward_style").to_pylist() == [0.5, 0.0]
    assert table.column("reward_exact").to_pylist() == [None, None]
    assert Rollouts.differences(table.schema) == []


def test_other_columns_are_not_written() -> None:
    assert "note" not in Rollouts.to_arrow(frame_of(Rollouts, {}).with_columns(note=pl.lit("x"))).column_names


def test_differences_name_each_column() -> None:
    found = Rollouts.arrow_schema(("reward_exact",))
    found = found.remove(found.get_field_index("policy_id"))
    found = found.set(found.get_field_index("seed"), pa.field("seed", pa.int32()))
    found = found.set(found.get_field_index("prompt_token_ids"), pa.field("prompt_token_ids", pa.list_(pa.int64())))
    found = found.set(found.get_field_index("reward_exact"), pa.field("reward_exact", pa.string()))
    found = found.append(pa.field("note", pa.string()))
    assert Rollouts.differences(found) == [
        "column prompt_token_ids is list<item: int64>, expected list<item: int32>",
        "column policy_id (string) is missing",
        "column seed is int32, expected int64",
        "column reward_exact is string, expected double",
        "column note is not part of table rollouts version 1",
    ]


def test_repeated_and_countless_columns_are_differences() -> None:
    found = Shaped.arrow_schema()
    again = pa.schema([*found, found.field("weight")])
    assert Shaped.differences(again) == ["column weight is there 2 times"]
    many = pa.schema([*Rollouts.arrow_schema(), *(pa.field(f"reward_{i}", pa.float64()) for i in range(1001))])
    most = len(Rollouts.columns()) + 1000
    assert Rollouts.differences(many) == [f"{most + 1:,} columns, expected at most {most:,}"]


def test_large_strings_and_lists_are_no_difference() -> None:
    """Polars writes them; they hold the same values."""
    assert Rollouts.differences(frame_of(Rollouts, {}).to_arrow().schema) == []
