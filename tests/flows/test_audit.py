"""`rollbook audit` and `rollbook lineage` as a user meets them: exit status, standard output, what is written where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Request, Store, Work


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one artifact."""
    with Store(tmp_path / "store").work(Request("checkpoint", "import-by-hand/1", {"iteration": 0})) as work:
        assert isinstance(work, Work)
        (work.path / "config.json").write_text("{}", encoding="utf-8")
        work.finish({"iteration": 0})
    return tmp_path / "store"


def test_a_sound_store_ends_with_0_and_a_page(rollbook: Any, store: Path, tmp_path: Path) -> None:
    said = rollbook("audit", "store")
    assert (said.status, said.out.splitlines()[-2:]) == (0, ["sound", "page: audit.html"])
    assert (tmp_path / "audit.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_findings_end_with_1_and_json_is_all_there_is_on_standard_output(rollbook: Any, store: Path, tmp_path: Path) -> None:
    (store / "stray").write_text("x", encoding="utf-8")
    said = rollbook("audit", "store", "--json")
    assert said.status == json.loads(said.out)["status"] == 1
    assert not (tmp_path / "audit.html").exists()
    assert rollbook("audit", "store", "--json", "--out", "there.html").status == 1
    assert (tmp_path / "there.html").exists()


@pytest.mark.parametrize("path", ["nowhere", "run.yaml", "."])
def test_what_is_no_artifact_run_or_store_ends_with_2(rollbook: Any, project: Path, path: str) -> None:
    said = rollbook("audit", path)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"rollbook: {path}: ") and "Traceback" not in said.err


def test_a_format_of_another_version_ends_with_2(rollbook: Any, store: Path) -> None:
    manifest = next(store.glob("*/*/manifest.json"))
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("rollbook/1", "rollbook/7"), encoding="utf-8")
    said = rollbook("audit", "store")
    assert said.status == 2 and "cannot tell: 1 not checked" in said.out


def test_lineage_prints_a_tree_and_exports(rollbook: Any, store: Path) -> None:
    said = rollbook("lineage", "store")
    assert said.status == 0 and said.out.startswith("checkpoint ")
    id = json.loads(next(store.glob("*/*/manifest.json")).read_text(encoding="utf-8"))["id"]
    assert json.loads(rollbook("lineage", id[:8], "--in", "store", "--format", "json").out)["nodes"][0]["id"] == id
    assert list(json.loads(rollbook("lineage", "store", "--format", "prov").out)["entity"]) == [f"rollbook:{id}"]
    assert len(json.loads(rollbook("lineage", "store", "--format", "openlineage").out)) == 2
    missing = rollbook("lineage", "abc")
    assert missing.status == 2 and "no runs in runs/" in missing.err
