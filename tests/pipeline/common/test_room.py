"""What memory there is: a process's own limits count beside the machine's."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import room
from pipeline.common.room import MemoryRoom, Reserved, host_room, room_in_all, room_of_new_process

GB = 1_000_000_000
ASKED = """
import json, resource, sys
from pipeline.common.room import Reserved, host_room, room_of_new_process
which, most = json.loads(sys.argv[1])
resource.setrlimit(getattr(resource, which), (most, most))
here, new = host_room(), room_of_new_process(Reserved(address=500_000_000, data=200_000_000))
print(json.dumps([vars(here), vars(new)]))
"""
ADDRESSES, DATA = "of a process's address space (ulimit -v)", "of a process's data (ulimit -d)"


def limited(which: str, most: int) -> tuple[MemoryRoom, MemoryRoom]:
    """What a process with a limit says of itself, and of one that it would start."""
    command = [sys.executable, "-c", ASKED, json.dumps([which, most])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    here, new = (MemoryRoom(**one) for one in json.loads(done.stdout))
    return here, new


@pytest.mark.parametrize(("which", "of", "left"), [("RLIMIT_AS", ADDRESSES, 500_000_000), ("RLIMIT_DATA", DATA, 800_000_000)])
def test_a_limit_of_each_process_counts_what_it_has_set_aside(which: str, of: str, left: int) -> None:
    _, new = limited(which, GB)
    assert (new.of, new.free) == (of, left)


@pytest.mark.parametrize(("which", "of"), [("RLIMIT_AS", ADDRESSES), ("RLIMIT_DATA", DATA)])
def test_what_a_process_has_mapped_is_gone_from_its_own_limit(which: str, of: str) -> None:
    most = 100_000_000
    here, _ = limited(which, most)
    assert here.of == of
    assert 0 < here.free < most - 1_000_000


def test_of_several_processes_each_has_its_own_limit_and_a_share_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "shared_room", lambda: MemoryRoom(free=12 * GB, of="available on this machine"))
    nothing = Reserved(address=0, data=0)
    monkeypatch.setattr(room, "_limit", lambda which: None)
    assert host_room(3).free == 4 * GB
    assert room_of_new_process(nothing, 3, others=3 * GB) == MemoryRoom(free=3 * GB, of="available on this machine")
    monkeypatch.setattr(room, "_limit", lambda which: 5 * GB)
    assert room_of_new_process(nothing, 1).free == 5 * GB
    assert room_of_new_process(nothing, 3).free == 4 * GB


def test_a_file_that_a_process_has_mapped_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system can have its pages back, so what it calls free has them already; memory of its own is not free."""
    monkeypatch.setattr(room, "shared_room", lambda: MemoryRoom(free=GB, of="available on this machine"))
    (tmp_path / "file").write_bytes(bytes(1 << 26))
    before = room_in_all().free
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not any(mapped[:: 1 << 12])
        assert room_in_all().free - before < 1 << 24
    own = bytearray(b"1") * (1 << 26)
    assert room_in_all().free - before > 1 << 25
    assert len(own) == 1 << 26


def test_what_a_process_is_to_start_with_is_never_less_than_nothing() -> None:
    assert limited("RLIMIT_DATA", 150_000_000)[1].free == 0
