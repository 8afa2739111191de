"""Requests and their keys, and artifacts that are found, read and refused by what their manifest says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import DataError, IntegrityError, StageFailed, UserError
from pipeline.store import Artifact, Request, Store, Work, read_table, scan_table
from pipeline.store import work as writing
from pipeline.store.store import load_artifact
from schemas import Prompts, Rollouts, Shaped
from schemas.manifest import Parent, digest

Make = Callable[..., Artifact]
REQUEST = Request("shaped", "shape/1", {"min_group": 1}, (Parent(role="rollouts", kind="rollouts", id="ab"),))
ROWS = pl.DataFrame(
    {"group_id": ["g"], "sample_index": [0], "advantage": [0.5], "weight": [1.0], "keep": [True], "drop_reason": [None]},
    schema={name: column.dtype for name, column in Shaped.columns().items()},
)


@pytest.fixture
def shaped(store: Store) -> Artifact:
    """A shaped artifact with two part files."""
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", ROWS, Shaped)
        work.write_table("part-00001.parquet", ROWS.with_columns(group_id=pl.lit("h")), Shaped)
        return work.finish({"kept": 2})


def rewrite(artifact: Artifact, change: Callable[[dict[str, Any]], None], *, sign: bool = False) -> Path:
    """Change a manifest as a person with an editor could; `sign` gives it the id of its new content."""
    file = artifact.path / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    if sign:
        manifest["id"] = digest(manifest["content"])
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return artifact.path


def test_the_same_request_has_the_same_key() -> None:
    assert REQUEST.key == Request("shaped", "shape/1", {"min_group": 1}, REQUEST.parents).key


def test_the_order_of_settings_does_not_change_the_key() -> None:
    one = Request("shaped", "shape/1", {"a": 1, "b": {"c": [1, 2], "d": None}})
    other = Request("shaped", "shape/1", {"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert one.key == other.key


@pytest.mark.parametrize(
    "other",
    [
        Request("scores", REQUEST.stage, REQUEST.recipe, REQUEST.parents),
        Request("shaped", "shape/2", REQUEST.recipe, REQUEST.parents),
        Request("shaped", REQUEST.stage, {"min_group": 2}, REQUEST.parents),
        Request("shaped", REQUEST.stage, {"min_group": 1, "more": None}, REQUEST.parents),
        Request("shaped", REQUEST.stage, REQUEST.recipe, ()),
        Request("shaped", REQUEST.stage, REQUEST.recipe, (Parent(role="rollouts", kind="rollouts", id="cd"),)),
        Request("shaped", REQUEST.stage, REQUEST.recipe, (Parent(role="reference", kind="rollouts", id="ab"),)),
    ],
    ids=["kind", "stage version", "recipe", "recipe with more", "no parents", "parent's id", "parent's role"],
)
def test_the_key_follows(other: Request) -> None:
    assert other.key != REQUEST.key


def test_the_order_of_lists_changes_the_key() -> None:
    assert Request("shaped", "s", {"k": [1, 2]}).key != Request("shaped", "s", {"k": [2, 1]}).key


def test_a_request_survives_its_json() -> None:
    again = Request.from_json(json.loads(json.dumps(REQUEST.to_json())))
    assert again == REQUEST
    assert again.key == REQUEST.key


def test_what_was_not_made_is_not_found(store: Store) -> None:
    assert store.find(REQUEST) is None
    assert list(store.artifacts()) == []


def test_a_finished_artifact_is_found_by_an_equal_request(store: Store, shaped: Artifact) -> None:
    found = store.find(Request("shaped", "shape/1", {"min_group": 1}, REQUEST.parents))
    assert found is not None
    assert found.manifest == shaped.manifest
    assert found.path == store.root / "shaped" / REQUEST.key[:16]
    assert store.find(Request("shaped", "shape/1", {"min_group": 2}, REQUEST.parents)) is None


def test_a_finished_artifact_is_not_made_again(store: Store, shaped: Artifact) -> None:
    before = {path: path.stat().st_mtime_ns for path in shaped.path.iterdir()}
    with store.work(REQUEST) as found:
        assert isinstance(found, Artifact)
        assert found.id == shaped.id
    assert {path: path.stat().st_mtime_ns for path in shaped.path.iterdir()} == before


def test_an_unfinished_directory_is_not_an_artifact(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", ROWS, Shaped)
        assert store.find(REQUEST) is None
        assert list(store.artifacts()) == []
        with pytest.raises(UserError, match=r"not a finished artifact \(it has no manifest.json\)"):
            load_artifact(work.path)


def test_the_manifest_lists_every_file(shaped: Artifact) -> None:
    content = shaped.manifest.content
    assert [(file.path, file.rows, file.table) for file in content.files] == [
        ("part-00000.parquet", 1, "shaped/1"),
        ("part-00001.parquet", 1, "shaped/1"),
    ]
    assert content.key == REQUEST.key
    assert content.parents == REQUEST.parents
    assert shaped.summary == {"kept": 2}
    assert shaped.parent("rollouts").id == "ab"
    shaped.verify()


def test_files_are_in_the_order_of_their_numbers_however_many_digits_these_have(store: Store) -> None:
    numbers = (100_000, 99_999, 2, 1_000_000)
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        for number in numbers:
            work.write_table(f"part-{number:05d}.parquet", ROWS, Shaped)
        made = work.finish({})
    assert [path.name for path in made.tables("shaped")] == [f"part-{number:05d}.parquet" for number in sorted(numbers)]
    assert made.file("part-100000.parquet").is_file() and not made.file("part-00003.parquet").exists()


def test_a_manifest_that_could_not_be_read_is_not_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGEST_MANIFEST", 1000)  # the real one takes a million files
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        for number in range(3):
            work.write_table(f"part-{number:05d}.parquet", ROWS, Shaped)
        with pytest.raises(StageFailed, match=r"its 3 files make a manifest of more than .* Make fewer files"):
            work.finish({})
    assert store.find(REQUEST) is None


def test_an_artifact_is_opened_by_its_id(store: Store, make_artifact: Make) -> None:
    one, other = make_artifact("shaped", name="one"), make_artifact("shaped", name="other")
    assert one.id != other.id
    assert store.get(other.as_parent("shaped")).path == other.path
    with pytest.raises(IntegrityError, match=r"no rollouts artifact with id .* \(rollouts\)"):
        store.get(Parent(role="rollouts", kind="rollouts", id=one.id))
    assert {artifact.id for artifact in store.artifacts()} == {one.id, other.id}


def test_the_same_work_has_the_same_id_in_another_store(tmp_path: Path) -> None:
    ids = []
    for name in ("one", "other"):
        with Store(tmp_path / name).work(REQUEST) as work:
            assert isinstance(work, Work)
            work.write_table("part-00000.parquet", ROWS, Shaped)
            (work.path / "timing.txt").write_text(name, encoding="utf-8")
            ids.append(work.finish({}, outside_id=("timing.txt",), notes={"store": name}).id)
    assert ids[0] == ids[1]


def test_a_table_is_read_back(shaped: Artifact) -> None:
    assert read_table(shaped, Shaped)["group_id"].to_list() == ["g", "h"]
    assert read_table(shaped, Shaped, ["advantage"]).columns == ["advantage"]
    assert scan_table(shaped, Shaped).select(pl.len()).collect().item() == 2


def test_a_table_that_an_artifact_does_not_hold_is_refused(shaped: Artifact) -> None:
    with pytest.raises(DataError, match="this shaped artifact has no rollouts table"):
        scan_table(shaped, Rollouts)


def test_a_row_that_does_not_fit_is_not_written(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        bad = pl.concat([ROWS, ROWS.with_columns(group_id=pl.lit("h"), weight=pl.lit(-1.0, pl.Float32))])
        with pytest.raises(DataError, match=r"part-00000.parquet, row 1: weight is below its minimum \(1 of 2 rows"):
            work.write_table("part-00000.parquet", bad, Shaped)
        assert not list(work.path.iterdir())


def test_scratch_files_are_not_part_of_the_artifact(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        work.scratch.mkdir()
        (work.scratch / "state").write_text("x", encoding="utf-8")
        work.write_table("part-00000.parquet", ROWS, Shaped)
        artifact = work.finish({})
    assert sorted(path.name for path in artifact.path.iterdir()) == ["manifest.json", "part-00000.parquet"]


def test_a_flipped_byte_is_found(shaped: Artifact) -> None:
    file = shaped.path / "part-00001.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet: was changed .* have it made anew"):
        shaped.verify()


def test_a_missing_file_is_found(shaped: Artifact) -> None:
    (shaped.path / "part-00001.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet: listed in the manifest but missing\. Restore it"):
        shaped.verify()
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet: missing, .* Restore it or make the artifact anew"):
        scan_table(shaped, Shaped)


def test_a_truncated_file_is_found(shaped: Artifact) -> None:
    file = shaped.path / "part-00000.parquet"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=rf"part-00000\.parquet: has {size - 1} bytes, the manifest says {size}\. Restore"):
        shaped.verify()
    with pytest.raises(IntegrityError, match=rf"part-00000\.parquet: {size - 1} bytes, the manifest says {size} bytes\. Restore"):
        scan_table(shaped, Shaped)


def test_a_file_outside_the_id_is_verified_too(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        (work.path / "timing.txt").write_text("1 s", encoding="utf-8")
        artifact = work.finish({}, outside_id=("timing.txt",))
    (artifact.path / "timing.txt").write_text("2 s", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"timing\.txt: was changed"):
        artifact.verify()


def test_a_table_of_another_version_is_refused(shaped: Artifact) -> None:
    rewrite(shaped, lambda manifest: manifest["content"]["files"][1].update(table="shaped/7"), sign=True)
    changed = load_artifact(shaped.path)
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet: table shaped version 7; this version of rollbook reads 1"):
        scan_table(changed, Shaped)


def test_a_file_with_other_columns_is_refused(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        ROWS.write_parquet(work.path / "part-00000.parquet")
        assert work.has_table("part-00000.parquet", Prompts)
        artifact = work.finish({})
    with pytest.raises(DataError, match=r"part-00000\.parquet: column prompt_id \(string\) is missing; .*group_id is not part"):
        scan_table(artifact, Prompts)


def test_a_file_that_is_not_parquet_is_refused(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", ROWS, Shaped)
        artifact = work.finish({})
    size = (artifact.path / "part-00000.parquet").stat().st_size
    (artifact.path / "part-00000.parquet").write_bytes(b"x" * size)
    with pytest.raises(DataError, match=r"part-00000\.parquet: not a readable Parquet file"):
        scan_table(artifact, Shaped)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b"])
@pytest.mark.parametrize("where", ["content", "provenance"])
def test_a_manifest_that_lists_files_elsewhere_is_refused(shaped: Artifact, path: str, where: str) -> None:
    entry = {"path": path, "bytes": 1, "sha256": "00", "rows": None, "table": None}
    place = rewrite(shaped, lambda manifest: manifest[where].update(files=[entry]), sign=True)
    with pytest.raises(
        IntegrityError, match=rf"manifest\.json: not a valid manifest: .*lists '{path}', which lies outside the artifact"
    ):
        load_artifact(place)


def test_an_unknown_format_is_refused(shaped: Artifact) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest.update(format="rollbook/2", signature="a field that this version does not know")

    with pytest.raises(IntegrityError, match=r"manifest\.json: format 'rollbook/2'; this version of rollbook reads 'rollbook/1'"):
        load_artifact(rewrite(shaped, newer))


def test_an_edited_manifest_is_refused(shaped: Artifact) -> None:
    place = rewrite(shaped, lambda manifest: manifest["content"]["summary"].update(kept=200))
    with pytest.raises(IntegrityError, match=r"manifest\.json: its content hashes to another id than it states\. Restore it"):
        load_artifact(place)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"format": "rollbook/1"}', b"[" * 5000], ids=repr)
def test_what_is_not_a_manifest_is_refused(shaped: Artifact, text: bytes) -> None:
    (shaped.path / "manifest.json").write_bytes(text)
    with pytest.raises(IntegrityError, match=r"manifest\.json: not a valid manifest: .* Restore it"):
        load_artifact(shaped.path)


def test_an_artifact_in_the_place_of_another_is_refused(store: Store, shaped: Artifact) -> None:
    other = Request("shaped", "shape/1", {"min_group": 2}, REQUEST.parents)
    shutil.copytree(shaped.path, store.path_of(other))
    with pytest.raises(IntegrityError, match=f"holds key {REQUEST.key}, expected {other.key}"):
        store.find(other)


@pytest.mark.parametrize("place", ["nowhere", "file.txt"])
def test_what_is_no_directory_of_an_artifact_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{place}: not a finished artifact"):
        load_artifact(tmp_path / place)


def test_a_run_in_the_place_of_an_artifact_is_refused_with_the_command_that_lists_them(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"a run, not one of its artifacts; `rollbook lineage .* --all` lists those$"):
        load_artifact(tmp_path)
