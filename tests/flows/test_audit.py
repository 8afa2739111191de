"""`rollbook audit` and `rollbook lineage` as a user meets them: exit status, standard output, what is written where."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.command import COMMAND
from pipeline.common.errors import IntegrityError
from pipeline.run.record import load_run
from pipeline.store import Request, Store, Work


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


def test_a_long_command_is_one_line_of_the_lineage(rollbook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["rollbook", "run", *(f"--set=train.epochs={number}" for number in range(20))]
    monkeypatch.setenv(COMMAND, json.dumps(command))
    with Store(tmp_path / "store").work(Request("checkpoint", "import-by-hand/1", {})) as work:
        assert isinstance(work, Work)
        work.finish({})
    assert f"[1] {shlex.join(command)}\n" in rollbook("lineage", "store").out


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
def test_a_manifest_that_is_no_json_or_no_text_is_a_finding(
    rollbook: Any, store: Path, value: str, form: tuple[str, ...]
) -> None:
    manifest = next(store.glob("*/*/manifest.json"))
    text = manifest.read_text(encoding="utf-8").replace('"iteration": 0', f'"iteration": {value}', 1)
    manifest.write_text(text, encoding="utf-8")
    said = rollbook("audit", "store", *form)
    assert (said.status, "Traceback" in said.err) == (1, False)
    assert "a valid manifest" in said.out


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("reference", ["a\0b/checkpoint/c", "x" * 5000 + "/checkpoint/c", "\ud800/checkpoint/c"])
def test_a_reference_that_is_no_path_is_a_finding(
    rollbook: Any, store: Path, tmp_path: Path, reference: str, form: tuple[str, ...]
) -> None:
    (tmp_path / "run").mkdir()
    (store).rename(tmp_path / "run" / "artifacts")
    record = {"format": "rollbook-run/1", "policy": {"kind": "checkpoint", "id": "\udcff", "path": reference}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    said = rollbook("audit", "run", *form)
    assert (said.status, "Traceback" in said.err) == (1, False)
    assert "named artifact" in said.out


@pytest.mark.parametrize("command", ["audit", "lineage"])
def test_a_path_that_no_file_can_have_ends_with_2(rollbook: Any, command: str) -> None:
    said = rollbook(command, "x" * 5000)
    assert (said.status, "Traceback" in said.err) == (2, False)


def test_a_record_with_a_reference_that_is_too_long_cannot_be_opened(settings: Any, tmp_path: Path) -> None:
    named = {"train_prompts": {"path": "x" * 5000, "id": "x"}, "heldout_prompts": None, "missing": None}
    record = {"format": "rollbook-run/1", "config": settings(), **named}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(IntegrityError, match="File name too long"):
        load_run(tmp_path)
