"""Exports open as they are, say what they are of, and stand in nobody's way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.common.errors import DataError, UserError
from pipeline.common.text import code
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_request
from pipeline.exchange.exports.completions import ExportSource, write_preference, write_sft
from pipeline.exchange.exports.dataset import write_dataset
from pipeline.exchange.exports.folder import RECORD, export_folder
from pipeline.exchange.exports.model import write_model
from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.shape.order import shape_request
from pipeline.shape.stage import shape
from pipeline.sources.models import hashes_of, import_model, model_files
from pipeline.sources.order import import_request
from pipeline.store import Artifact, Store
from pipeline.store.files import sha256_of
from pipeline.store.store import load_artifact
from pipeline.store.work import Work

ROOT = Path(__file__).parents[4]
FIXTURES = ROOT / "tests" / "pipeline" / "imports" / "fixtures"
REWARDS = {"1+1": [1.0, 0.0, 0.5], "2+2": [0.0, 0.0]}


@pytest.fixture
def rollouts(store: Store, tmp_path: Path) -> Artifact:
    """Three completions of one prompt, two equal ones of another."""
    rows = [
        {"prompt": prompt, "completion": f"A:{place}", "prompt_tokens": [20], "completion_tokens": [20, place], "reward": reward}
        for prompt, rewards in REWARDS.items()
        for place, reward in enumerate(rewards)
    ]
    rows.append({**rows[0], "completion": "A:9", "finish_reason": "length", "reward": 2.0})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return import_rollouts(store, order_of([path], "plain"))[0]


@pytest.fixture
def shaped(rollouts: Artifact, store: Store, make_config: Callable[..., RunConfig]) -> Artifact:
    """The rollouts with DPO's pairs."""
    config = make_config({"train.algorithm": "dpo"})
    spec = {
        "store": str(store.root),
        "request": shape_request(config, 0, rollouts).to_json(),
        "rollouts": str(rollouts.path),
        "shape": config.shape.model_dump(mode="json"),
        "algorithm": "dpo",
        "algorithm_args": {},
    }
    reporter: Any = SimpleNamespace(note=print, progress=lambda *_: None)
    return load_artifact(shape(spec, reporter)["artifact"])


def test_a_dataset_is_the_artifacts_own_bytes_with_a_card(rollouts: Artifact, tmp_path: Path) -> None:
    assert write_dataset(rollouts, _new(tmp_path / "out"), None) == 6
    for file in rollouts.files:
        if file.path.startswith(("part-", "origins-")):
            assert sha256_of(tmp_path / "out" / "data" / file.path) == file.sha256
    front, text = _card(tmp_path / "out")
    assert [config["config_name"] for config in front["configs"]] == ["rollouts", "origins"]
    assert rollouts.id in text and "`behavior_logprobs`" in text and "rows.jsonl" in text
    assert write_dataset(rollouts, _new(tmp_path / "best"), 1.0) == 2
    assert pl.read_parquet(tmp_path / "best" / "data" / "part-*.parquet")["reward"].to_list() == [1.0, 2.0]
    with pytest.raises(DataError, match="no completion has that reward"):
        write_dataset(rollouts, _new(tmp_path / "none"), 7.0)
    assert list((tmp_path / "none" / "data").iterdir()) == []  # `datasets` opens no file without rows


def test_sft_rows_are_whole_and_graded(rollouts: Artifact, tmp_path: Path) -> None:
    assert write_sft(ExportSource.of(rollouts), _new(tmp_path / "out"), 0.5) == 2
    rows = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet")
    assert rows.select("prompt", "completion", "reward").rows() == [("1+1", "A:0", 1.0), ("1+1", "A:2", 0.5)]
    with pytest.raises(DataError, match="no completion has that reward"):
        write_sft(ExportSource.of(rollouts), _new(tmp_path / "none"), 7.0)


def test_preferences_are_the_best_with_the_worst_or_every_pair(rollouts: Artifact, tmp_path: Path) -> None:
    source = ExportSource.of(rollouts)
    assert write_preference(source, _new(tmp_path / "one"), None, RewardPairs()) == 1
    assert write_preference(source, _new(tmp_path / "all"), None, RewardPairs(strategy="all")) == 3
    row = pl.read_parquet(tmp_path / "one" / "data" / "*.parquet").row(0, named=True)
    assert {name: row[name] for name in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")} == {
        "prompt": "1+1",
        "chosen": "A:0",
        "rejected": "A:1",
        "score_chosen": 1.0,
        "score_rejected": 0.0,
    }


def test_preferences_of_a_shaped_table_are_its_own_pairs(shaped: Artifact, tmp_path: Path) -> None:
    assert write_preference(ExportSource.of(shaped), _new(tmp_path / "out"), None, RewardPairs()) == 1
    row = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet").row(0, named=True)
    made = pl.read_parquet(shaped.tables("pairs")).row(0, named=True)
    assert (row["chosen_index"], row["rejected_index"]) == (made["chosen_index"], made["rejected_index"])


def test_every_export_is_imported_as_it_is(rollouts: Artifact, store: Store, tmp_path: Path) -> None:
    """By its columns alone; no reward is lost."""
    model = {"model": ROOT / "data/base"}
    with export_folder(tmp_path / "dataset", {}) as directory:
        write_dataset(rollouts, directory, None)
    again, _ = import_rollouts(store, order_of([tmp_path / "dataset"], None))
    assert again.summary["completions"] == 6 and again.summary["reward_mean"] == rollouts.summary["reward_mean"]
    with export_folder(tmp_path / "sft", {}) as directory:
        write_sft(ExportSource.of(rollouts), directory, None)
    again, _ = import_rollouts(store, order_of([tmp_path / "sft"], None, **model))
    assert (again.recipe["format"], again.summary["completions"], again.summary["groups"]) == ("plain", 5, 2)
    with export_folder(tmp_path / "pairs", {}) as directory:
        write_preference(ExportSource.of(rollouts), directory, None, RewardPairs(strategy="all"))
    again, _ = import_rollouts(store, order_of([tmp_path / "pairs"], None, **model))
    assert (again.recipe["format"], again.summary["completions"], again.summary["groups"]) == ("preference", 6, 3)


def test_a_model_is_no_source_of_completions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"It is a model: name it with --model, or as model\.path of a run"):
        order_of([ROOT / "data/base"], None)


def test_a_model_cites_its_evaluations_and_loads(
    store: Store, tmp_path: Path, make_config: Callable[..., RunConfig], make_artifact: Callable[..., Artifact]
) -> None:
    from transformers import AutoConfig

    files = model_files(ROOT / "data" / "base", trust_remote_code=False)
    model = import_model(store, import_request(hashes_of(files)), files, "base", None)
    sampled = make_artifact("rollouts", name="sampled")
    with store.work(evaluate_request(make_config(), model, sampled, None)) as work:
        assert isinstance(work, Work)
        (work.path / "file.txt").write_text("x", encoding="utf-8")
        evaluation = work.finish({"pass_at": {"1": 0.25}, "prompts": 16})
    write_model(model, _new(tmp_path / "out"))
    front, text = _card(tmp_path / "out")
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in metrics} == {"pass_at.1": 0.25, "prompts": 16}
    assert model.id in text and evaluation.id in text
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size > 0
    assert sha256_of(tmp_path / "out" / "model.safetensors") == sha256_of(ROOT / "data" / "base" / "model.safetensors")
    with pytest.raises(UserError, match="exports a checkpoint"):
        write_model(sampled, _new(tmp_path / "other"))


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("one", "two"):
        with export_folder(out, {"form": "test"}) as directory:
            (directory / "file.txt").write_text(text, encoding="utf-8")
    assert (out / "file.txt").read_text(encoding="utf-8") == "two"
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    assert record["files"][0] | {"path": "file.txt"} == record["files"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / RECORD).unlink()
    with pytest.raises(UserError, match="no export of rollbook"), export_folder(out, {}):
        pass
    assert (out / "file.txt").read_text(encoding="utf-8") == "two"


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), export_folder(tmp_path / "out", {}) as directory:
        (directory / "file.txt").write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_export_into_the_artifact_itself_is_refused(rollouts: Artifact) -> None:
    out = rollouts.path / "export"
    ended = CliRunner().invoke(app, ["export", str(rollouts.path), "--to", "sft", "--out", str(out)])
    assert isinstance(ended.exception, UserError) and "lies inside of the artifact" in str(ended.exception)
    assert not out.exists()


def test_names_of_strangers_are_no_markup() -> None:
    assert code("a`b|c\n# d") == "`a b c # d`"


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _card(directory: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (directory / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text
