"""What is exported in another tool's form comes back through its import as it was, as far as the form can hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.common.errors import DataError, UserError
from pipeline.exchange.exports.completions import ExportSource
from pipeline.exchange.exports.foreign import foreign_forms, write_foreign
from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts, Turns
from schemas.table import Table

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
LEFT = {"verifiers": 6, "atropos": 5, "verl": 5, "openai": 6, "trl-tokens": 6}
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
    "verl": ["reward", "answer", "action_mask", "prompt_text", "completion_text"],
    "trl-tokens": ["reward", "reward_a", "reward_b", "answer", "action_mask", "prompt_text", "completion_text"],
    "openai": ["action_mask", "finish_reason", "policy_id", "temperature", "top_p", "prompt_text", "completion_text"],
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
        "  not held: 1 completions are left out: they failed",
        "  not held: 1 completions are left out: they have no reward, and a score is a number",
        "  not held: columns: finish_reason, logprobs_mode, policy_id, reward_a, reward_b, temperature, top_p",
        "  not held: names of prompts: a group is what its uid has in common",
    ]
    assert "- names of prompts: a group is" in (tmp_path / "verl" / "README.md").read_text(encoding="utf-8")
    told = json.loads(
        runner.invoke(app, ["export", str(rollouts.path), "--to", "openai", "--out", str(tmp_path / "o"), "--json"]).stdout
    )
    assert told["completions"] == 6 and "columns: answer, logprobs_mode, reward, reward_a, reward_b" in told["not_held"]


def test_least_rewards_and_exports_of_nothing(rollouts: Artifact, tmp_path: Path) -> None:
    form = foreign_forms()["atropos"]
    assert write_foreign(ExportSource.of(rollouts), tmp_path, form, 0.5).completions == 3
    with pytest.raises(DataError, match="nothing to export: no completion has that reward"):
        write_foreign(ExportSource.of(rollouts), tmp_path, form, 9.0)


DRAWN = [True, False, False, True, True]


@pytest.fixture
def episodes(store: Store) -> Artifact:
    """Two episodes of one prompt: the policy calls a tool, which answers, and the policy goes on; and one without a call."""
    with store.work(Request("rollouts", "generate/1", {"of": "episodes"})) as work:
        assert isinstance(work, Work)
        none = dict.fromkeys(Rollouts.columns())
        said = {"group_id": "p@1", "prompt_id": "p", "prompt_token_ids": [20, 21], "prompt_text": "Q:", "policy_id": "base"}
        said |= {
            "source": "self",
            "status": "ok",
            "policy_version": 0,
            "engine": "vllm",
            "logprobs_mode": "processed_logprobs",
        }
        rows = [
            {
                "completion_token_ids": [33, 40, 41, 34, 1],
                "action_mask": DRAWN,
                "behavior_logprobs": [-0.5, 0.0, 0.0, -1.0, -0.25],
            },
            {"completion_token_ids": [35, 1], "action_mask": None, "behavior_logprobs": [-0.5, -0.25]},
        ]
        more = [{"sample_index": at, "completion_text": f"A{at}", "reward": 1.0 - at} for at in range(2)]
        frame = [{**none, **said, **row, **other} for row, other in zip(rows, more, strict=True)]
        work.write_table("part-00000.parquet", pl.DataFrame(frame, schema=types_of(Rollouts)), Rollouts)
        spoken = [(0, 0, 0, 1, "policy"), (0, 1, 1, 2, "tool"), (0, 2, 3, 2, "policy"), (1, 0, 0, 2, "policy")]
        turns = [("p@1", sample, turn, start, length, who, None, None, "ok") for sample, turn, start, length, who in spoken]
        work.write_table("turns-00000.parquet", pl.DataFrame(turns, schema=types_of(Turns), orient="row"), Turns)
        return work.finish({"groups": 1})
    raise AssertionError


def types_of(table: type[Table]) -> dict[str, Any]:
    return {name: column.dtype for name, column in table.columns().items()}


@pytest.mark.parametrize("name", LEFT)
def test_episodes_come_back_with_the_same_tokens_and_mask(name: str, episodes: Artifact, store: Store, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["export", str(episodes.path), "--to", name, "--out", str(tmp_path / name)])
    assert said.exit_code == 0, said.output
    assert "not held: turns: who spoke" in said.output
    back = import_rollouts(store, order_of([tmp_path / name], None, model=BASE))[0]
    columns = [*TOKENS, "action_mask"]
    assert rows_of(back).select(columns).to_dicts() == rows_of(episodes).select(columns).to_dicts()
    assert rows_of(back)["group_id"].n_unique() == 1


def test_forms_of_texts_refuse_episodes_with_those_that_hold_them(episodes: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to dataset, trl-tokens, verl, openai"):
        ExportSource.of(episodes)


@pytest.mark.needs("atroposlib")
def test_the_api_of_atropos_takes_its_groups(episodes: Artifact, tmp_path: Path) -> None:
    from atroposlib.api.server import ScoredData

    write_foreign(ExportSource.of(episodes, masked=True), tmp_path, foreign_forms()["atropos"], None)
    (line,) = (tmp_path / "groups.jsonl").read_text(encoding="utf-8").splitlines()
    taken = ScoredData.model_validate_json(line, strict=True)
    assert taken.tokens == [[20, 21, 33, 40, 41, 34, 1], [20, 21, 35, 1]] and taken.scores == [1.0, 0.0]
    assert taken.masks == [[-100, -100, 33, -100, -100, 34, 1], [-100, -100, 35, 1]]
    assert taken.inference_logprobs == [[1.0, 1.0, -0.5, 1.0, 1.0, -1.0, -0.25], [1.0, 1.0, -0.5, -0.25]]


@pytest.mark.needs("verifiers")
def test_verifiers_reads_its_traces(episodes: Artifact, tmp_path: Path) -> None:
    from verifiers.v1.trace import Trace, WireTaskData
    from verifiers.v1.utils.trace_store import read_episodes

    write_foreign(ExportSource.of(episodes, masked=True), tmp_path, foreign_forms()["verifiers"], None)
    read = read_episodes(tmp_path, Trace[WireTaskData, Any, Any])
    nodes = [[(node.token_ids, node.mask, node.logprobs) for node in one.traces[0].nodes] for one in read]
    call = [([33], [True], [-0.5]), ([40, 41], [False, False], []), ([34, 1], [True, True], [-1.0, -0.25])]
    assert nodes == [
        [([20, 21], [False, False], []), *call],
        [([20, 21], [False, False], []), ([35, 1], [True, True], [-0.5, -0.25])],
    ]
    assert [one.traces[0].reward for one in read] == [1.0, 0.0]


@pytest.mark.needs("trl", "accelerate")
def test_trls_sft_learns_the_drawn_tokens_alone(episodes: Artifact, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    write_foreign(ExportSource.of(episodes, masked=True), tmp_path, foreign_forms()["trl-tokens"], None)
    data = load_dataset("json", data_files=str(tmp_path / "tokens.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    settings = SFTConfig(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False)
    trainer = SFTTrainer(model=str(BASE), args=settings, train_dataset=data)
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(2)])
    assert batch["input_ids"][0].tolist() == [20, 21, 33, 40, 41, 34, 1]
    assert batch["labels"][0].tolist() == [-100, -100, 33, -100, -100, 34, 1]
    assert batch["labels"][1].tolist()[:4] == [-100, -100, 35, 1]
