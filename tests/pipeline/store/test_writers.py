"""Writers that are killed, that meet, and that have no room: real processes, real locks, a real full disk."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import polars as pl
import pytest

from pipeline.common.errors import StageFailed
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.files import whole_file, write_text
from pipeline.store.lock import Lock, is_held
from schemas import Shaped

REQUEST = Request("shaped", "test/1", {})
Start = Callable[..., "subprocess.Popen[str]"]


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return line_of(process.stdout)


def line_of(stream: IO[str]) -> str:
    line = stream.readline()
    assert line, "the process ended without a word"
    return line.strip()


def parts(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("part-*"))


def identity(file: Path) -> tuple[int, int]:
    """Differs once a file was written again."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


@pytest.mark.parametrize(("step", "finished"), [("write_text", False), ("shutil.rmtree", True)])
def test_resume_state_is_there_until_the_manifest_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str, finished: bool
) -> None:
    """Killed before its last two steps, a stage has one of the two to go on from."""

    def killed(*args: object, **more: object) -> None:
        raise SystemExit("killed")

    with pytest.raises(SystemExit), store.work(REQUEST) as work:
        assert isinstance(work, Work)
        (work.scratch / "step-00000900").mkdir(parents=True)
        (work.scratch / "step-00000900" / "state").write_bytes(b"900 steps")
        (work.path / "model").write_bytes(b"weights")
        monkeypatch.setattr(f"pipeline.store.directory.{step}", killed)
        work.finish({})
    assert (work.scratch / "step-00000900" / "state").exists()
    assert (store.find(REQUEST) is not None) == finished


def test_a_lock_is_held_as_long_as_it_is(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "some.lock") and not (tmp_path / "some.lock").exists()
    with Lock(tmp_path / "some.lock"):
        assert is_held(tmp_path / "some.lock")
    assert not is_held(tmp_path / "some.lock")


def test_resume_state_that_was_left_in_a_finished_artifact_is_none_of_its_files(store: Store) -> None:
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        (work.path / "model").write_bytes(b"weights")
        made = work.finish({})
    (work.scratch / "step-00000900").mkdir(parents=True)
    (work.scratch / "step-00000900" / "state").write_bytes(b"900 steps")
    made.verify()
    assert made.place.names() == ["manifest.json", "model"]


def test_a_killed_writer_leaves_no_half_file_and_its_finished_files_are_reused(store: Store, start: Start) -> None:
    writer = start("""
        with store.work(request) as work:
            work.write_table("part-00000.parquet", rows("first"), Shaped)
            with whole_file(work.path / "part-00001.parquet") as temporary:
                temporary.write_bytes(b"PAR1 and no more")
                say("half way")
                time.sleep(60)
    """)
    assert next_line(writer) == "half way"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()

    place = store.path_of(REQUEST)
    assert store.find(REQUEST) is None
    assert parts(place) == ["part-00000.parquet"]
    assert len(list(place.iterdir())) == 2, "the half file has a name of its own"
    before = identity(place / "part-00000.parquet")
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        assert [path.name for path in place.iterdir()] == ["part-00000.parquet"]
        assert work.has_table("part-00000.parquet", Shaped)
        assert not work.has_table("part-00001.parquet", Shaped)
        second = pl.read_parquet(place / "part-00000.parquet").with_columns(group_id=pl.lit("second"))
        work.write_table("part-00001.parquet", second, Shaped)
        artifact = work.finish({})
    artifact.verify()
    assert read_table(artifact, Shaped)["group_id"].unique(maintain_order=True).to_list() == ["first", "second"]
    assert identity(place / "part-00000.parquet") == before


def test_a_writer_killed_at_any_moment_leaves_whole_files(store: Store, start: Start) -> None:
    writer = start("""
        with store.work(request) as work:
            for number in range(100000):
                work.write_table(f"part-{number:05d}.parquet", rows(str(number)), Shaped)
                say(number)
    """)
    for _ in range(5):
        next_line(writer)
    writer.kill()
    writer.wait()
    written = parts(store.path_of(REQUEST))
    assert len(written) >= 5
    for name in written:
        assert len(pl.read_parquet(store.path_of(REQUEST) / name)) == 2000
    assert store.find(REQUEST) is None


def test_of_two_processes_one_makes_the_artifact_and_the_other_finds_it(store: Store, start: Start) -> None:
    source = """
        with store.work(request) as work:
            if isinstance(work, Work):
                time.sleep(0.5)
                work.write_table("part-00000.parquet", rows("g"), Shaped)
                say("made", work.finish({}).id)
            else:
                say("found", work.id)
    """
    both = [start(source), start(source)]
    ends = [process.communicate(timeout=60) for process in both]
    answers = sorted(out.split() for out, _ in ends)
    assert [words[0] for words in answers] == ["found", "made"]
    assert answers[0][1] == answers[1][1]
    found = store.find(REQUEST)
    assert found is not None
    found.verify()


def test_a_waiting_process_says_for_whom_once(store: Store, start: Start, tmp_path: Path) -> None:
    """The holder is this process; the waiting one tells its process number on standard error."""
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
        waiting = start("""
            with store.work(request) as work:
                say(type(work).__name__)
        """)
        assert waiting.stderr is not None
        line = line_of(waiting.stderr)
        time.sleep(0.5)
        work.finish({})
    out, rest = waiting.communicate(timeout=60)
    assert line.startswith(f"waiting for shaped-{REQUEST.key[:16]}, held by process {os.getpid()} on ")
    assert (out.strip(), rest) == ("Artifact", "")


def test_the_lock_of_a_killed_process_is_free(store: Store, start: Start) -> None:
    holder = start("""
        with store.work(request) as work:
            say("holding")
            time.sleep(60)
    """)
    assert next_line(holder) == "holding"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with store.work(REQUEST) as work:
        assert isinstance(work, Work)
    assert time.monotonic() - began < 2


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside: list[str] = []

    def enter(name: str) -> None:
        with Lock(tmp_path / "a.lock", poll_seconds=0.001):
            inside.append(f"{name} in")
            time.sleep(0.02)
            inside.append(f"{name} out")

    threads = [threading.Thread(target=enter, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pairs = list(zip(inside[::2], inside[1::2], strict=True))
    assert sorted(pairs) == [(f"{name} in", f"{name} out") for name in "abcd"]


def test_a_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Lock(tmp_path / "a.lock"):
        raise KeyError
    with Lock(tmp_path / "a.lock"):
        pass


def test_work_that_fails_leaves_no_artifact_and_frees_its_lock(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.work(REQUEST):
        raise ZeroDivisionError
    assert store.find(REQUEST) is None
    with store.work(REQUEST) as work:
        assert not isinstance(work, Artifact)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new", encoding="utf-8")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk needs root: {error}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_named(small_disk: Path) -> None:
    types = {name: column.dtype for name, column in Shaped.columns().items()}
    noise = [(os.urandom(8).hex(), i, 0.5, 1.0, True, None) for i in range(40_000)]
    frame = pl.DataFrame(noise, schema=types, orient="row")
    with Store(small_disk / "store").work(REQUEST) as work:
        assert isinstance(work, Work)
        with pytest.raises(StageFailed, match=r"part-00000\.parquet: cannot be written: .*No space left on device"):
            work.write_table("part-00000.parquet", frame, Shaped)
        assert not list(work.path.iterdir())
        work.write_table("part-00000.parquet", frame.head(10), Shaped)
        work.finish({}).verify()


def test_text_that_does_not_fit_on_the_disk_is_named(small_disk: Path) -> None:
    with pytest.raises(StageFailed, match=r"run\.json: cannot be written: No space left on device\. Mend that"):
        write_text(small_disk / "run.json", "x" * 300_000)
    assert list(small_disk.iterdir()) == []


def test_a_read_only_disk_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StageFailed, match=r"a\.txt: cannot be written: Read-only file system\. Mend that"):
        write_text(small_disk / "a.txt", "x")
    with (
        pytest.raises(StageFailed, match=r"locks/shaped-[0-9a-f]+\.lock: cannot be written: Read-only file system"),
        Store(small_disk / "store").work(REQUEST),
    ):
        pass


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x", encoding="utf-8")
    with (
        pytest.raises(StageFailed, match=r"shaped-[0-9a-f]+\.lock: cannot be written: Not a directory"),
        Store(tmp_path / "store").work(REQUEST),
    ):
        pass


def test_a_file_where_the_artifact_should_be_is_named(store: Store) -> None:
    place = store.path_of(REQUEST)
    place.parent.mkdir(parents=True)
    place.write_text("x", encoding="utf-8")
    with pytest.raises(StageFailed, match=rf"{place.name}: cannot be written: File exists"), store.work(REQUEST):
        pass


def test_work_without_room_is_refused_before_it_starts(small_disk: Path) -> None:
    with Store(small_disk / "store").work(REQUEST) as work:
        assert isinstance(work, Work)
        work.require_space(100_000, "a little")
        with pytest.raises(
            StageFailed, match=r"[0-9.]+ kB free on its disk, but a checkpoint will take about 1\.0 MB\. Make room"
        ):
            work.require_space(1e6, "a checkpoint")
        (work.path / "half").write_bytes(b"x" * 200_000)
        work.require_space(250_000, "a file of which most is there")


def test_a_file_above_the_limit_is_named(store: Store, start: Start) -> None:
    """RLIMIT_FSIZE, as a quota would."""
    writer = start("""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with store.work(request) as work:
            work.write_table("part-00000.parquet", rows("g", 100_000), Shaped)
    """)
    _, error = writer.communicate(timeout=60)
    assert re.search(r"StageFailed: .*part-00000\.parquet: cannot be written: .*File too large", error)
    assert not parts(store.path_of(REQUEST))


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_place_without_permission_is_named(store: Store, start: Start) -> None:
    store.root.mkdir(mode=0o755)
    writer = start("""
        import os
        from pipeline.common.errors import StageFailed
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            with store.work(request):
                pass
        except StageFailed as error:
            say(error)
    """)
    assert re.search(
        r"\.lock: cannot be written: Permission denied\. Mend that and run the same command again", next_line(writer)
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_manifest_without_permission_is_named(store: Store, start: Start, make_artifact: Callable[..., Artifact]) -> None:
    made = make_artifact("shaped")
    (made.path / "manifest.json").chmod(0o600)
    for place in (made.path, *made.path.parents):
        if place.is_relative_to(tempfile.gettempdir()):
            place.chmod(place.stat().st_mode | 0o055)
    reader = start(f"""
        import os
        from pipeline.store.store import load_artifact
        from pipeline.common.errors import UserError
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            load_artifact({str(made.path)!r})
        except UserError as error:
            say(error)
    """)
    assert next_line(reader).endswith("manifest.json: cannot be read: Permission denied")


def test_a_device_is_written_to_and_stays_one() -> None:
    reader, writer = os.openpty()
    device = Path(os.ttyname(writer))
    try:
        write_text(device, "said")
        assert os.read(reader, 10) == b"said"
        assert device.is_char_device()
    finally:
        os.close(reader)
        os.close(writer)
