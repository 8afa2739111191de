"""What can be deleted, and that nothing else is."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.record import load_run, save_run
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.lock import Lock
from pipeline.store.store import load_artifact
from pipeline.train.carried import state_request

Rollbook = Callable[..., tuple[int, str, str]]
ALONE = "--no-other-runs"


@pytest.fixture
def complete(finished: Path) -> Path:
    """The run, with nothing missing."""
    run = load_run(finished)
    assert run.missing is None
    return finished


def leftovers(run: Path) -> dict[str, Path]:
    """What killed processes and abandoned settings leave behind."""
    store = run / "artifacts"
    unfinished = store / "rollouts" / ("d" * 16)
    (unfinished / ".resume").mkdir(parents=True)
    (unfinished / ".resume" / "model.safetensors").write_bytes(bytes(1000))
    (unfinished / "part-00000.parquet").write_bytes(bytes(500))
    temporary = next((store / "shaped").iterdir()) / ".tmp-x-part"
    temporary.write_bytes(b"half")
    return {"unfinished": unfinished, "temporary": temporary, "unreferenced": other(Store(store)).path}


def other(store: Store, **recipe: Any) -> Artifact:
    """An artifact that no run names."""
    with store.work(Request("shaped", "shape/1", {"other": True, **recipe})) as work:
        assert isinstance(work, Work)
        (work.path / "file").write_bytes(bytes(100))
        return work.finish({})


def items(out: str, key: str = "deletable") -> set[tuple[str, str]]:
    return {(item["reason"], Path(item["path"]).name) for item in json.loads(out)[key] if item["reason"] != "lock"}


def test_a_dry_run_lists_leftovers_and_changes_nothing(rollbook: Rollbook, complete: Path) -> None:
    left = leftovers(complete)
    before = sorted(complete.rglob("*"))
    status, out, err = rollbook("gc", complete, ALONE)
    assert (status, err) == (0, "")
    assert "unfinished: 1, 1.5 kB" in out and "temporary: 1, 4 bytes" in out and "unreferenced: 1, " in out
    assert sorted(complete.rglob("*")) == before
    expected = {(reason, path.name) for reason, path in left.items()}
    assert items(rollbook("gc", complete, ALONE, "--json")[1]) == expected


def test_delete_removes_that_and_the_run_is_as_it_was(rollbook: Rollbook, complete: Path) -> None:
    left = leftovers(complete)
    status, _, err = rollbook("gc", complete, ALONE, "--delete")
    assert (status, err) == (0, "")
    assert not any(path.exists() for path in left.values())
    for step in load_run(complete).iterations:
        step.policy.verify()
    assert rollbook("gc", complete, ALONE)[1] == "nothing to delete\n"
    assert not list((complete / "artifacts" / "locks").iterdir())


def test_moments_that_the_next_training_goes_on_from_stay(rollbook: Rollbook, complete: Path, parts: dict[str, Path]) -> None:
    store, newest = Store(complete / "artifacts"), load_artifact(parts["checkpoint 0"])
    for key in (newest.manifest.content.key, "0" * 64):
        with store.work(state_request(key)) as work:
            assert isinstance(work, Work)
            work.finish({"steps": 4})
    assert items(rollbook("gc", complete, ALONE, "--json")[1]) == {("unreferenced", store.path_of(state_request("0" * 64)).name)}


def test_resume_state_of_a_finished_artifact_goes_without_more_ado(
    rollbook: Rollbook, complete: Path, parts: dict[str, Path]
) -> None:
    """The process was killed after it wrote the manifest, and before it removed what it could have gone on from."""
    scratch = parts["checkpoint 0"] / ".resume"
    (scratch / "step-00000900").mkdir(parents=True)
    (scratch / "step-00000900" / ".tmp-state").write_bytes(bytes(900))
    assert items(rollbook("gc", complete, "--json")[1]) == {("temporary", ".resume")}
    assert rollbook("repair", parts["checkpoint 0"])[0] == 0
    assert rollbook("gc", complete, "--delete")[0] == 0
    assert not scratch.exists()
    load_run(complete).iterations[1].policy.verify()


def test_an_unfinished_run_keeps_what_it_may_go_on_from(rollbook: Rollbook, complete: Path) -> None:
    left = leftovers(complete)
    run = load_run(complete)
    run.missing = "train 1"
    save_run(run, complete)
    _, out, _ = rollbook("gc", complete, ALONE, "--json")
    assert items(out) == {("temporary", left["temporary"].name)}
    assert "run small may go on from them. Finish it, or --abandon them" in json.loads(out)["left_alone"][0]
    assert ("unfinished", "d" * 16) in items(rollbook("gc", complete, ALONE, "--abandon", "--json")[1])


def test_an_unfinished_comparison_keeps_them_too(rollbook: Rollbook, complete: Path, parts: dict[str, Path]) -> None:
    leftovers(complete)
    (complete / "comparisons" / parts["rollouts"].name).mkdir(parents=True)
    _, out, _ = rollbook("gc", complete, ALONE)
    assert f"the comparison on rollouts/{parts['rollouts'].name} may go on from them" in out


def test_a_shared_store_is_left_alone_until_every_run_is_named(rollbook: Rollbook, complete: Path, tmp_path: Path) -> None:
    leftovers(complete)
    store = (complete / "artifacts").rename(tmp_path / "shared")
    record = json.loads((complete / "run.json").read_text(encoding="utf-8"))
    text = json.dumps(record).replace('"artifacts/', f'"{store}/')
    (complete / "run.json").write_text(text, encoding="utf-8")
    _, out, _ = rollbook("gc", store, "--run", complete, "--json")
    assert {reason for reason, _ in items(out)} == {"temporary"}
    assert "other runs may use this store" in json.loads(out)["left_alone"][0]
    _, out, _ = rollbook("gc", store, "--run", complete, ALONE, "--json")
    assert {reason for reason, _ in items(out)} == {"temporary", "unfinished", "unreferenced"}


def test_a_run_that_shares_the_store_within_another_run_loses_nothing(rollbook: Rollbook, complete: Path, tmp_path: Path) -> None:
    """Its store is the other run's, and the other run knows nothing of it."""
    theirs = other(Store(complete / "artifacts"))
    unfinished = complete / "artifacts" / "checkpoint" / ("c" * 16) / ".resume"
    unfinished.mkdir(parents=True)
    run = load_run(complete)
    save_run(replace(run, train_prompts=theirs, iterations=[]), tmp_path / "second")
    for named in (("gc", complete), ("gc", complete / "artifacts"), ("gc", complete, "--abandon")):
        status, out, _ = rollbook(*named, "--delete")
        assert status == 0 and "other runs may use this store. Name those with --run; then --no-other-runs" in out
    assert theirs.file("file").exists() and load_run(tmp_path / "second").missing is None and unfinished.exists()
    _, out, _ = rollbook("gc", complete, "--run", tmp_path / "second", ALONE, "--json")
    assert items(out) == {("unfinished", "c" * 16)}


def test_what_was_asked_for_by_itself_is_no_garbage(rollbook: Rollbook, complete: Path) -> None:
    """A repaired artifact and what it was made from, though no run names them."""
    store = Store(complete / "artifacts")
    parent = other(store)
    with store.work(Request("rollouts", "repair/1", {}, (parent.as_parent("damaged"),))) as work:
        assert isinstance(work, Work)
        work.finish({})
    assert items(rollbook("gc", complete, ALONE, "--json")[1]) == set()


def test_nothing_is_deleted_while_a_lock_is_held(rollbook: Rollbook, complete: Path) -> None:
    left = leftovers(complete)
    with Lock(complete / "artifacts" / "locks" / f"rollouts-{'d' * 16}.lock"):
        status, _, err = rollbook("gc", complete, ALONE, "--delete")
    assert status == 2
    assert f"work goes on there (rollouts-{'d' * 16}: process {os.getpid()} on " in err
    assert all(path.exists() for path in left.values())


def test_who_waits_for_a_lock_that_gc_removes_does_not_hold_a_ghost(tmp_path: Path) -> None:
    """The waiter has the old file open; a third process would lock a new one beside it."""
    path, taken = tmp_path / "x.lock", threading.Event()
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)

    def wait() -> None:
        with Lock(path, poll_seconds=0.01, notify=lambda message: None):
            assert os.path.samestat(os.stat(path), os.stat(path))
            taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    path.unlink()
    os.close(handle)
    thread.join(10)
    assert taken.is_set() and path.exists()


def test_links_are_removed_and_not_followed(rollbook: Rollbook, complete: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x", encoding="utf-8")
    unfinished = complete / "artifacts" / "rollouts" / ("e" * 16)
    unfinished.mkdir()
    (unfinished / "link").symlink_to(tmp_path / "precious")
    assert rollbook("gc", complete, ALONE, "--delete")[0] == 0
    assert not unfinished.exists() and (tmp_path / "precious" / "file").exists()


def test_other_directories_are_no_part_of_a_store(rollbook: Rollbook, complete: Path) -> None:
    for name in ("rollouts/notes", "mine/aaaaaaaaaaaaaaaa", "logs/x"):
        (complete / "artifacts" / name).mkdir(parents=True)
    assert items(rollbook("gc", complete, ALONE, "--json")[1]) == set()
