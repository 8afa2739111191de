"""Hashes that are remembered: a file that has not changed is read once; one that has, however it was changed, is read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.common.errors import IntegrityError
from pipeline.store import Artifact, Request, Store
from pipeline.store.files import sha256_of
from pipeline.store.remembered import LEAST, clone, hard_link, known_sha256
from pipeline.store.store import verified
from pipeline.store.work import Work

ONES, TWOS = b"1" * LEAST, b"2" * LEAST


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were read to be hashed, with a cache of its own."""
    names: list[str] = []

    def spied(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setenv("ROLLBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.store.remembered.sha256_of", spied)
    return names


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_file_that_has_not_changed_is_read_once(tmp_path: Path, read: list[str]) -> None:
    path = written(tmp_path / "weights", ONES)
    assert {known_sha256(path) for _ in range(3)} == {sha256_of(path)}
    assert read == ["weights"]


def rewritten(path: Path) -> None:
    path.write_bytes(TWOS)


def rewritten_with_its_times(path: Path) -> None:
    times = path.stat()
    path.write_bytes(TWOS)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced_with_its_times(path: Path) -> None:
    times = path.stat()
    other = written(path.with_name("other"), TWOS)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [rewritten, rewritten_with_its_times, replaced_with_its_times])
def test_a_file_of_the_same_size_that_was_changed_is_read_again(
    change: Callable[[Path], None], tmp_path: Path, read: list[str]
) -> None:
    path = written(tmp_path / "weights", ONES)
    before = known_sha256(path)
    change(path)
    assert known_sha256(path) == sha256_of(path) != before
    assert len(read) == 2


def test_small_files_are_read_every_time(tmp_path: Path, read: list[str]) -> None:
    path = written(tmp_path / "small", ONES[1:])
    assert known_sha256(path) == known_sha256(path)
    assert len(read) == 2


@pytest.mark.parametrize("text", ["", "null", "[1]", '[[1, 2], "00"]', '{"state": 1}'])
def test_a_spoiled_memory_is_no_memory(text: str, tmp_path: Path, read: list[str]) -> None:
    path = written(tmp_path / "weights", ONES)
    known_sha256(path)
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    kept.write_text(text)
    assert known_sha256(path) == sha256_of(path)
    assert len(read) == 2


def test_without_a_cache_files_are_hashed_every_time(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLBOOK_CACHE", str(written(tmp_path / "file", b"")))
    path = written(tmp_path / "weights", ONES)
    assert known_sha256(path) == known_sha256(path) == sha256_of(path)
    assert len(read) == 2


def test_a_link_is_known_as_its_file_is(tmp_path: Path, read: list[str]) -> None:
    path = written(tmp_path / "weights", ONES)
    known_sha256(path)
    assert hard_link(path, tmp_path / "second")
    assert known_sha256(tmp_path / "second") == known_sha256(path)
    assert read == ["weights"]
    assert not hard_link(path, tmp_path / "second")  # it is there


def test_a_clone_is_a_file_of_its_own_or_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "weights", ONES)
    done = clone(path, tmp_path / "second")
    assert (tmp_path / "second").exists() == done
    if done:
        rewritten(tmp_path / "second")
        assert path.read_bytes() == ONES


def test_an_artifact_is_hashed_when_it_is_finished_and_not_when_it_is_worked_from(tmp_path: Path, read: list[str]) -> None:
    with Store(tmp_path / "store").work(Request("checkpoint", "train/1", {})) as work:
        assert isinstance(work, Work)
        written(work.path / "model.safetensors", ONES)
        made: Artifact = work.finish({})
    assert read == ["model.safetensors"]
    verified(made.path)
    assert read == ["model.safetensors"]
    made.place.verify_there(made.files)  # what audits, repairs and signatures look at
    rewritten_with_its_times(made.path / "model.safetensors")
    with pytest.raises(IntegrityError, match="was changed after it was written"):
        verified(made.path)
