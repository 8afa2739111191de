"""Imports at size: rows that are made many at once are those that are made one by one, and a killed import goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.exchange.imports import gather, read, stage
from pipeline.exchange.imports.format import Options
from pipeline.exchange.imports.rows import Declared
from pipeline.exchange.imports.simple import SimpleRows
from pipeline.exchange.imports.stage import ImportPlan, import_rollouts, order_of
from pipeline.exchange.imports.tokens import ImportRendering, SourceTokenizer
from pipeline.store import Artifact, Store

BASE = Path(__file__).parents[4] / "data" / "base"
Plan = Callable[..., ImportPlan]
KINDS: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "texts": ({"completion": ["A:1", "", "A:2<eos>"]}, {}),
    "all there is": (
        {
            "finish_reason": ["stop", "length", None],
            "reward": [1.0, 0, None],
            "answer": ["2", 3, 2.0],
            "group_id": ["g", 7, None],
            "prompt_id": ["p", None, 3],
            "seed": [1, None, 2**62],
            "temperature": [1.0, 1, None],
            "policy": ["a", "", None],
            "policy_version": [0, 3, None],
            "error": [None, "why", None],
            "status": ["ok", None, "truncated"],
            "level": [1, None, {"x": 1}],
        },
        {},
    ),
    "parts of the reward": ({"reward_a": [1.0, None, 0.5], "reward_b": [2, 1.0, None], "reward": [1.0, 2.0, 3]}, {}),
    "said of all": (
        {"reward": [None, 1.0, 0.0], "finish_reason": ["stop", None, "stop"]},
        {
            "declared": Declared(reward=0.5, temperature=0.7, top_k=5, policy="mine"),
            "rendering": ImportRendering(template="Q:{question}=", eos="always"),
        },
    ),
    "mapped": ({"right": [True, False, True], "score": [1, 2.5, 0]}, {"options": Options({"reward": "score"})}),
}


def rows_of(columns: dict[str, list[Any]], count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    made = []
    for number in range(count):
        row = {"prompt": f"{number // 3}+1", "completion": f"A:{draw.randrange(9)}"}
        made.append(row | {name: draw.choice(values) for name, values in columns.items()})
    return made


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def make(rows: list[Any], name: str = "rows.jsonl", **settings: Any) -> ImportPlan:
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return order_of([tmp_path / name], "plain", model=BASE, **settings)

    return make


def bytes_of(artifact: Artifact) -> dict[str, str]:
    return {file.path: file.sha256 for file in artifact.files}


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_are_the_rows_that_are_made_one_by_one(
    kind: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, settings = KINDS[kind]
    order = plan(rows_of(columns, 40), **settings)
    made: list[bool] = []
    of = SimpleRows.of
    monkeypatch.setattr(SimpleRows, "of", lambda self, rows: (found := of(self, rows), made.append(found is not None))[0])
    together = import_rollouts(Store(tmp_path / "a"), order)[0]
    assert made == [True]
    monkeypatch.setattr(SimpleRows, "of", lambda self, rows: None)
    assert bytes_of(together) == bytes_of(import_rollouts(Store(tmp_path / "b"), order)[0])


def test_one_row_out_of_the_ordinary_leaves_the_others_as_they_are(plan: Plan, tmp_path: Path) -> None:
    """Batches of rows that are simple, of some that are not, and of lines that are no rows."""
    odd: list[Any] = [
        {"prompt": "1+1", "completion": ["A:2"]},
        "{",
        {"prompt": [{"role": "user", "content": "3"}], "completion": "A:3"},
    ]
    artifact = import_rollouts(Store(tmp_path / "a"), plan([*rows_of({}, 30), *odd]))[0]
    assert (artifact.summary["completions"], artifact.summary["set_aside"]) == (31, 2)


class _Killed(BaseException):
    """As a signal would end the process."""


@pytest.mark.parametrize("simple", [True, False])
def test_a_killed_import_goes_on_and_makes_the_same_bytes(
    simple: bool, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "TOGETHER", 16)
    monkeypatch.setattr(read, "LINES", 16)
    monkeypatch.setattr(stage, "BATCH", 8)
    monkeypatch.setattr(gather, "BUFFER_ROWS", 5)
    monkeypatch.setattr(gather, "RANGE_GROUPS", 4)
    monkeypatch.setattr(gather, "SHARD_ROWS", 12)
    if not simple:
        monkeypatch.setattr(SimpleRows, "of", lambda self, rows: None)
    rows: list[Any] = rows_of({"reward": [0.0, 1.0], "reward_a": [1.0], "prompt_id": ["p", None]}, 90)
    order = plan([*rows[:50], "{", {"prompt": "1", "completion": 2.5}, *rows[50:]])
    never = import_rollouts(Store(tmp_path / "a"), order)[0]
    monkeypatch.setattr(gather, "JOURNAL_SECONDS", -1)
    store, begun = Store(tmp_path / "b"), []

    def until(limit: int) -> Callable[[int, int], None]:
        first: list[int] = []

        def told(done: int, aside: int) -> None:
            if not first:
                begun.append(done)
            first.append(done)
            if done >= limit:
                raise _Killed

        return told

    for limit in (20, 40, 60, 80):
        with pytest.raises(_Killed):
            import_rollouts(store, order, until(limit))
    again, there = import_rollouts(store, order, until(10**9))
    assert not there and begun == sorted(begun) and begun[-1] > 60
    assert bytes_of(again) == bytes_of(never) and again.id == never.id
    assert len(pl.scan_parquet(tmp_path / "b/rollouts/*/part-*.parquet").collect()) == 91


def test_what_a_journal_does_not_name_or_has_lost_is_made_anew(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "TOGETHER", 16)
    monkeypatch.setattr(read, "LINES", 16)
    monkeypatch.setattr(gather, "JOURNAL_SECONDS", -1)
    order = plan(rows_of({}, 60))
    never = import_rollouts(Store(tmp_path / "a"), order)[0]

    def stop(done: int, aside: int) -> None:
        if done >= 48:
            raise _Killed

    with pytest.raises(_Killed):
        import_rollouts(Store(tmp_path / "b"), order, stop)
    (scratch,) = (tmp_path / "b").glob("rollouts/*/*/import")
    next(scratch.glob("groups-*.arrow")).write_bytes(b"ARROW1")
    assert import_rollouts(Store(tmp_path / "b"), order)[0].id == never.id


def _openai(number: int) -> list[dict[str, Any]]:
    name = f"r{number}"
    body = {"model": "m", "choices": [{"message": {"content": f"A:{number % 7}"}, "finish_reason": "stop"}]}
    failed = {"custom_id": name, "response": None, "error": {"message": "expired"}}
    answered = {"custom_id": name, "response": {"status_code": 200, "body": body}, "error": None}
    return [
        {"custom_id": name, "body": {"messages": [{"role": "user", "content": f"{number // 3}+1"}]}},
        failed if number == 9 else answered,
    ]


def _lm_eval(number: int) -> list[dict[str, Any]]:
    arguments = {"gen_args_0": {"arg_0": f"Q:{number}=", "arg_1": {"temperature": 1.0}}}
    row = {"doc_id": number, "doc": {}, "target": "1", "arguments": arguments, "resps": [["A:1", "A:2"]], "filtered_resps": ["1"]}
    return [row | {"filter": name} for name in ("strict", "flexible")]


def _trl(number: int) -> list[dict[str, Any]]:
    step = number // 4 // 2  # each generation is logged at two steps
    row = {"step": number // 4, "prompt": f"{step}+1", "completion": f"A:{number % 4}"}
    return [row | {"right": float(number % 2), "length": float(number % 4), "advantage": number % 2 - 0.5}]


@pytest.mark.parametrize(("form", "made"), [("openai", _openai), ("lm-eval", _lm_eval), ("trl", _trl)])
def test_a_killed_import_of_a_format_that_remembers_goes_on_too(
    form: str, made: Callable[[int], list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH", 8)
    monkeypatch.setattr(gather, "BUFFER_ROWS", 5)
    monkeypatch.setattr(gather, "SHARD_ROWS", 12)
    rows = [row for number in range(60) for row in made(number)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    order = order_of([tmp_path / "rows.jsonl"], None, model=BASE)
    assert order.form.name == form and order.form.remembers
    never = import_rollouts(Store(tmp_path / "a"), order)[0]
    monkeypatch.setattr(gather, "JOURNAL_SECONDS", -1)
    tokenized: list[int] = []
    of = SourceTokenizer.of
    monkeypatch.setattr(SourceTokenizer, "of", lambda self, known: (tokenized.append(len(known)), of(self, known))[1])

    def stop(done: int, aside: int) -> None:
        if len(tokenized) in (2, 3):
            raise _Killed

    for _ in range(2):
        with pytest.raises(_Killed):
            import_rollouts(Store(tmp_path / "b"), order, stop)
    again = import_rollouts(Store(tmp_path / "b"), order, stop)[0]
    assert bytes_of(again) == bytes_of(never) and again.manifest.provenance.notes.get(
        "remarks"
    ) == never.manifest.provenance.notes.get("remarks")
    assert sum(tokenized) == never.summary["completions"] + 2 * 8
