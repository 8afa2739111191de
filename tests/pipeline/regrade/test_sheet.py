"""A sheet for annotators: written once, safe in any spreadsheet, read back as labels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardConfig
from pipeline.regrade.plan import grade_request, job_of
from pipeline.regrade.sheet import CUT, LONGEST_CELL, write_sheet
from pipeline.rewards.graders.labels import completion_hash
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts

EXACT = RewardConfig.model_validate({"components": [{"grader": "exact_match"}]})


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_labels_of_two_people_become_rewards(
    generate: Callable[..., Artifact], grading: Any, store: Store, tmp_path: Path
) -> None:
    stored, sheet = generate(EXACT), tmp_path / "sheet.csv"
    assert write_sheet(stored, sheet, None, ["ada", "bob"]) == 28
    rows = rows_in(sheet)
    assert {row["annotator"] for row in rows} == {"ada", "bob"} and not any(row["label"] for row in rows)
    for number, row in enumerate(rows):
        row["label"] = "1" if row["completion"] == "ab" else ("0,5", "0")[number % 2].replace(",", ".")
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    reward = RewardConfig.model_validate(
        {"components": [{"grader": "human", "args": {"path": str(sheet)}}], "max_failed_share": 1.0}
    )
    (made,) = grading(store, reward, job_of(stored, grade_request(stored, reward), [store]))
    graded = pl.concat([pl.read_parquet(path) for path in made.tables("rollouts")]).filter(pl.col("status") != "engine_error")
    assert graded["reward"].to_list() == [1.0 if text == "ab" else 0.25 for text in graded["completion_text"]]
    (said,) = made.manifest.provenance.notes["graders_said"]
    assert said.startswith("reward_human: sheet.csv: 28 labels of 14 completions by 2 annotators") and "alpha" in said
    assert "Krippendorff" in grading.events


def test_a_sheet_may_hold_some_completions_and_long_ones_are_cut(store: Store, tmp_path: Path) -> None:
    long = "=" + "x" * (LONGEST_CELL + 10)
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    common = {"prompt_token_ids": [1], "completion_token_ids": [1], "prompt_text": "@q", "policy_id": "p", "policy_version": 0}
    common |= {"source": "import", "logprobs_mode": "unknown", "engine": "none", "status": "ok", "reward": 0.0, "prompt_id": "p"}
    rows = [{"group_id": "-g", "sample_index": n, "completion_text": long, **common} for n in range(10)]
    with store.work(Request("rollouts", "import-rollouts/1", {})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        artifact = work.finish({})
    sheet = tmp_path / "sheet.csv"
    assert write_sheet(artifact, sheet, 4, []) == 4
    found = rows_in(sheet)
    assert [row["sample_index"] for row in found] == ["0", "2", "5", "7"]
    assert found[0]["completion"] == "'" + long[:LONGEST_CELL] + CUT
    assert found[0]["prompt"] == "'@q" and found[0]["group_id"] == "'-g"
    assert found[0]["completion_sha256"] == completion_hash(long)


def test_no_sheet_is_written_over_another(generate: Callable[..., Artifact], tmp_path: Path) -> None:
    stored, sheet = generate(EXACT), tmp_path / "sheet.csv"
    sheet.write_text("labels", encoding="utf-8")
    with pytest.raises(UserError, match="there already, and may hold labels"):
        write_sheet(stored, sheet, None, [])
    with pytest.raises(UserError, match=r"expected a name that ends with .csv"):
        write_sheet(stored, tmp_path / "sheet.xlsx", None, [])
    with pytest.raises(UserError, match="--annotator: the same name twice"):
        write_sheet(stored, tmp_path / "other.csv", None, ["ada", "ada"])
