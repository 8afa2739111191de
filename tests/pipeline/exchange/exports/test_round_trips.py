"""What is exported in another tool's form comes back through its import as it was, as far as the form can hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.common.errors import DataError
from pipeline.exchange.exports.completions import ExportSource
from pipeline.exchange.exports.foreign import foreign_forms, write_foreign
from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.store import Artifact, Store

BASE = Path(__file__).parents[4] / "data" / "base"
SAID = {"temperature": 0.7, "top_p": 1.0, "policy": "base", "answer": "2", "logprobs_mode": "processed_logprobs"}


def row(prompt: list[int], completion: list[int], reward: float | None, **more: Any) -> dict[str, Any]:
    logprobs = [-0.1 * (place + 1) for place in range(len(completion))]
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "logprobs": logprobs}
    texts = {"prompt": f"Q:{prompt}", "completion": f"A:{completion}"}
    return {**texts, **tokens, "reward": reward, "group": f"g{prompt}", **SAID, **more}


ROWS = [
    row([20, 21], [30, 31, 1], 1.0, finish_reason="stop", reward_a=0.5, reward_b=0.0),
    row([20, 21], [30, 32], 0.25, finish_reason="length", reward_a=1.0, reward_b=None),
    row([20, 21], [33, 40, 41, 34, 1], 0.0, finish_reason="stop", action_mask=[True, False, False, True, True]),
    row([22], [35], 0.5, finish_reason="stop"),
    row([22], [36, 1], None, finish_reason="stop"),
    row([22], [37, 1], 1.0, status="engine_error", error="lost"),
    row([23], [38, 1], 1.0, logprobs=None, finish_reason="stop"),
]
LEFT = {"verifiers": 6, "atropos": 5, "verl": 4, "openai": 5}
"""Rows that a form can hold."""
COMES_BACK = {
    "verifiers": [
        "action_mask",
        "answer",
        "finish_reason",
        "policy_id",
        "temperature",
        "top_p",
        "reward_a",
        "reward_b",
        "reward",
    ],
    "atropos": ["action_mask", "reward"],
    "verl": ["reward", "answer", "prompt_text", "completion_text"],
    "openai": ["finish_reason", "policy_id", "temperature", "top_p", "prompt_text", "completion_text"],
}
TOKENS = ["prompt_token_ids", "completion_token_ids", "behavior_logprobs"]


@pytest.fixture
def rollouts(store: Store, tmp_path: Path) -> Artifact:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ROWS), encoding="utf-8")
    return import_rollouts(store, order_of([path], "plain"))[0]


def rows_of(artifact: Artifact) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in artifact.tables("rollouts")], how="diagonal")


def test_every_form_is_here() -> None:
    assert set(LEFT) == set(foreign_forms())


@pytest.mark.parametrize("name", LEFT)
def test_what_a_form_holds_comes_back_as_it_was(name: str, rollouts: Artifact, store: Store, tmp_path: Path) -> None:
    form = foreign_forms()[name]
    (tmp_path / name).mkdir()
    written = write_foreign(ExportSource.of(rollouts), tmp_path / name, form, None)
    assert written.completions == LEFT[name]
    order = order_of([tmp_path / name], None, model=BASE)
    assert order.form.name == name
    back = import_rollouts(store, order)[0]
    assert "set_aside" not in back.summary
    kept = rows_of(rollouts).with_columns(form.refuses.alias("why")).filter(pl.col("why").is_null())
    columns = [*COMES_BACK[name], *(TOKENS if form.tokens else [])]
    found = rows_of(back).select(columns).to_dicts()
    for was, one in zip(kept.select(columns).to_dicts(), found, strict=True):
        if was.get("action_mask") and one.get("behavior_logprobs"):
            was["behavior_logprobs"] = [
                value if own else 0.0 for value, own in zip(was["behavior_logprobs"], was["action_mask"], strict=True)
            ]
        assert one == was
    groups = rows_of(back)["group_id"].to_list()
    assert len(set(groups)) == kept["group_id"].n_unique()


def test_what_a_form_cannot_hold_is_said(rollouts: Artifact, tmp_path: Path) -> None:
    runner = CliRunner()
    said = runner.invoke(app, ["export", str(rollouts.path), "--to", "verl", "--out", str(tmp_path / "verl")])
    assert said.exit_code == 0, said.output
    assert said.output.splitlines()[1:] == [
        "  not held: 1 completions are left out: some of their tokens were not drawn, which texts do not say",
        "  not held: 1 completions are left out: they failed",
        "  not held: 1 completions are left out: they have no reward, and a score is a number",
        "  not held: token ids: the form has texts, which are tokenized again",
        "  not held: columns: behavior_logprobs, finish_reason, logprobs_mode, policy_id, reward_a, reward_b, temperature, top_p",
        "  not held: names of prompts: a group is what its uid has in common",
    ]
    assert "- token ids: the form has texts" in (tmp_path / "verl" / "README.md").read_text(encoding="utf-8")
    told = json.loads(
        runner.invoke(app, ["export", str(rollouts.path), "--to", "openai", "--out", str(tmp_path / "o"), "--json"]).stdout
    )
    assert told["completions"] == 5 and "columns: answer, logprobs_mode, reward, reward_a, reward_b" in told["not_held"]


def test_least_rewards_and_exports_of_nothing(rollouts: Artifact, tmp_path: Path) -> None:
    form = foreign_forms()["atropos"]
    assert write_foreign(ExportSource.of(rollouts), tmp_path, form, 0.5).completions == 3
    with pytest.raises(DataError, match="nothing to export: no completion has that reward"):
        write_foreign(ExportSource.of(rollouts), tmp_path, form, 9.0)
