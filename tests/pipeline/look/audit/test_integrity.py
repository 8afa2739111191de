"""Whether an artifact, a run or a store is whole: what is found, how bad it is, and the exit status."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.look.audit.audit import Audit, audit
from pipeline.look.audit.findings import Finding
from pipeline.look.audit.remedies import in_order
from pipeline.store import Store
from schemas.manifest import sealed

MANIFEST = "manifest.json"


def findings(found: Audit, check: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.check == check]


def one(found: Audit, check: str) -> Finding:
    (finding,) = findings(found, check)
    return finding


def test_an_untouched_run_store_and_artifact_are_sound(made: Path) -> None:
    for path in (made, made / "run.json", made / "artifacts"):
        found = audit(path)
        assert (found.status, found.count("error"), found.count("warning"), found.count("unknown")) == (0, 0, 0, 0)
        assert len(found.held) == 14
    assert {held.kind for held in found.held} == {
        *("checkpoint", "comparison", "evaluation", "prompts", "rollouts", "scores", "shaped"),
    }
    for held in found.held:
        assert audit(held.folder.place.path).status == 0


def test_an_audit_changes_nothing(copied) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copied.run.rglob("*")}
    audit(copied.run)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copied.run.rglob("*")} == before


def test_a_flipped_bit_names_artifact_file_hashes_and_remedy(copied) -> None:
    file = copied.artifact("rollouts", purpose="train") / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    found = audit(copied.run)
    finding = one(found, "sha256")
    assert (found.status, finding.severity, finding.file) == (1, "error", "part-00000.parquet")
    assert finding.artifact == f"rollouts/{file.parent.name}"
    assert len(finding.expected) == len(finding.found) == 64 and finding.expected != finding.found
    assert "Restore it from a copy" in finding.remedy


def test_missing_truncated_linked_and_unlisted_files_are_told_apart(copied) -> None:
    prompts, checkpoint = copied.artifact("prompts"), copied.artifact("checkpoint", iteration=1)
    (prompts / "prompts.parquet").unlink()
    os.truncate(checkpoint / "config.json", 10)
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.json").symlink_to("config.json")
    (checkpoint / ".hidden").write_text("x", encoding="utf-8")
    found = audit(copied.run)
    assert one(found, "missing").file == "prompts.parquet"
    assert one(found, "bytes").found == "10 bytes"
    assert one(found, "regular").file == "tokenizer.json"
    assert one(found, "unlisted").file == ".hidden"


def test_a_pipe_in_place_of_a_file_does_not_hold_the_audit_up(copied) -> None:
    path = copied.artifact("prompts")
    (path / "prompts.parquet").unlink()
    os.mkfifo(path / "prompts.parquet")
    os.mkfifo(path / "other")
    found = audit(path)
    assert one(found, "regular").file == "prompts.parquet"
    assert one(found, "unlisted").file == "other"


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        ('"kind": "shaped"', '"kind": "scores"', "id"),
        ('"created": "2', '"created": "3', "seal"),
        ('"role": "rollouts"', '"role": "rollouts", "role": "x"', "manifest"),
        ("\n}\n", "\n}", "seal"),
        ('"format": "rollbook/1"', '"format": "rollbook/9"', "format"),
    ],
)
def test_every_part_of_a_manifest_is_covered(copied, old: str, new: str, check: str) -> None:
    """Content by the id, all the rest by the seal; a format that is not known cannot be judged."""
    file = copied.artifact("shaped") / MANIFEST
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text[::-1].replace(old[::-1], new[::-1], 1)[::-1], encoding="utf-8")
    found = audit(copied.store)
    assert findings(found, check)
    assert found.status == (1 if check != "format" else found.status) != 0


def test_a_remade_artifact_is_missed_by_what_was_made_from_it_and_by_the_record(copied) -> None:
    path = copied.artifact("rollouts", purpose="train")
    copied.remake(path, lambda content: content["summary"].update(reward_mean=0.9))
    found = audit(copied.run)
    children = {finding.artifact.split("/")[0] for finding in findings(found, "parent") if finding.artifact}
    assert children == {"shaped", "scores", "checkpoint", "comparison"}
    assert one(found, "named artifact").file == "run.json"


def test_a_renamed_and_a_copied_artifact_are_not_where_their_keys_are(copied) -> None:
    path = copied.artifact("shaped")
    shutil.copytree(path, path.with_name("0" * 16))
    found = audit(copied.store)
    assert one(found, "place").found == f"shaped/{'0' * 16}"


def test_a_directory_without_manifest_is_unfinished_work_or_a_loss(copied) -> None:
    evaluations = sorted((copied.store / "evaluation").iterdir())
    (evaluations[0] / MANIFEST).unlink()
    interrupted = copied.store / "shaped" / ("1" * 16)
    (interrupted / ".resume").mkdir(parents=True)
    (interrupted / ".resume" / "state").write_text("x", encoding="utf-8")
    found = audit(copied.store)
    lost, work = findings(found, "unfinished")
    assert (lost.severity, work.severity) == ("warning", "note")
    assert "run the same command again" in work.remedy


def test_work_of_a_live_process_is_only_noted(copied) -> None:
    name = "2" * 16
    place = copied.store / "shaped" / name
    place.mkdir()
    (place / "part-00000.parquet").write_bytes(b"x")
    with (copied.store / "locks" / f"shaped-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finding = one(audit(copied.store), "unfinished")
    assert finding.severity == "note" and "A process is at work" in finding.remedy


def test_a_file_that_cannot_be_read_makes_the_audit_unable_to_tell(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copied.artifact("evaluation")
    refused = path / "evaluation.parquet"
    real = Path.open

    def denied(self: Path, *args: object, **kwargs: object) -> object:
        if self == refused:  # root may read anything, so the refusal is made here
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", denied)
    found = audit(path)
    assert found.status == 2
    assert one(found, "readable").found == "Permission denied"


def test_an_artifact_on_its_own_is_sound_and_names_its_parents_as_not_here(copied, tmp_path: Path) -> None:
    alone = tmp_path / "handed over"
    shutil.copytree(copied.artifact("shaped"), alone)
    found = audit(alone)
    assert found.status == 0
    finding = one(found, "parent")
    assert finding.severity == "note" and finding.found == "not here: the artifact is on its own"


def test_a_lost_record_is_found_and_a_store_can_be_audited_without(copied) -> None:
    (copied.run / "run.json").unlink()
    assert one(audit(copied.run), "record").severity == "warning"
    assert audit(copied.store).status == 0


def test_a_record_whose_config_is_not_that_of_the_artifacts_names_the_setting(copied) -> None:
    file = copied.run / "run.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["config"]["train"]["learning_rate"] = 0.5
    record["seal"] = "0" * 64
    file.write_text(sealed(json.dumps(record, indent=2) + "\n"), encoding="utf-8")
    finding = one(audit(copied.run), "recipe")
    assert finding.column == "content.recipe.learning_rate"
    assert (finding.expected, finding.found) == ("0.5, as run.json says", "0.01")


def test_an_edited_record_breaks_its_seal(copied) -> None:
    file = copied.run / "run.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"name": "small"', '"name": "other"'), encoding="utf-8")
    assert one(audit(copied.run), "seal").file == "run.json"


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_what_cannot_be_audited_is_refused_with_what_was_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"no such file|nothing to audit|a file"):
        audit(tmp_path / name)


def test_what_a_store_holds_beside_artifacts_is_unlisted(copied) -> None:
    (copied.store / "notes.txt").write_text("x", encoding="utf-8")
    (copied.store / "rollouts" / "stray.parquet").write_text("x", encoding="utf-8")
    (copied.store / "unknown-kind").mkdir()
    places = {finding.file for finding in findings(audit(copied.store), "unlisted")}
    assert places == {"notes.txt", "rollouts/stray.parquet", "unknown-kind"}


def test_findings_of_one_kind_in_a_file_become_one_with_a_count(copied) -> None:
    assert Store(copied.store).root == copied.store
    path = copied.artifact("rollouts", purpose="train")
    import polars as pl

    copied.rewrite(path, "part-00000.parquet", temperature=pl.lit(0.7))
    finding = one(audit(path), "origin")
    assert (finding.row, finding.column, finding.count) == (0, "temperature", 16)


def test_signatures_and_what_repair_put_aside_may_lie_in_a_store(copied) -> None:
    shaped = copied.artifact("shaped")
    shaped.with_name(f"{shaped.name}.sig").write_text("{}", encoding="utf-8")
    aside = copied.store / "damaged" / "shaped" / shaped.name / "1"
    aside.mkdir(parents=True)
    (aside / "part-00000.parquet").write_bytes(b"x")
    found = audit(copied.store)
    assert found.status == 0
    assert [finding.file for finding in found.findings if finding.check == "set aside"] == ["damaged"]
    shaped.with_name("0123456789abcdef.sig").write_text("{}", encoding="utf-8")
    found = audit(copied.store)
    assert [f.file for f in found.findings if f.severity == "error"] == ["shaped/0123456789abcdef.sig"]


def test_resume_state_in_a_finished_artifact_is_a_note(copied) -> None:
    path = copied.artifact("checkpoint", iteration=1)
    (path / ".resume" / "step-00000010" / "empty").mkdir(parents=True)
    (path / ".resume" / "step-00000010" / "optimizer.pt").write_bytes(b"x")
    found = audit(copied.run)
    finding = one(found, "unlisted")
    assert (found.status, finding.severity, finding.file, finding.count) == (0, "note", ".resume", 2)
    assert "can be deleted" in finding.remedy


def test_remedies_are_commands_that_can_be_pasted(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order that the audit gives: what lies about is moved, a damaged file made anew, the run done last."""
    rollouts, judged = copied.artifact("rollouts", purpose="train"), copied.artifact("evaluation")
    (rollouts / "part-00000.parquet").write_bytes(b"x")
    (rollouts / "extra").write_bytes(b"x")
    manifest = json.loads((judged / MANIFEST).read_text(encoding="utf-8"))
    (judged / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    found = audit(copied.run)
    damaged = next(f for f in found.findings if f.file == "part-00000.parquet" and f.severity == "error")
    assert damaged.path == str(rollouts / "part-00000.parquet") and Path(damaged.path).exists()
    assert damaged.commands == (f"rollbook repair {rollouts} --regenerate",)
    extra, seal = one(found, "unlisted"), one(found, "seal")
    for command in (*extra.commands, seal.commands[0]):
        subprocess.run(command, shell=True, check=True)
    assert not (rollouts / "extra").exists() and not judged.exists()
    assert (copied.store / "damaged/by-hand/rollouts" / rollouts.name / "extra").exists()
    assert not [f for f in audit(copied.run).findings if f.check in ("unlisted", "seal")]
    assert set(in_order(found.findings)) >= {*extra.commands, *seal.commands, *damaged.commands}
