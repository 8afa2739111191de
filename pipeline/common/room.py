"""How much memory there is, as this process may have it: the machine's, its cgroup's, and what limits of its own leave it."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""cgroup v1 writes a number near 2^63 where there is no limit."""


ADDRESS_SPACE = "of a process's address space (ulimit -v)"
DATA = "of a process's data (ulimit -d)"
OF_EACH_PROCESS = {ADDRESS_SPACE: (resource.RLIMIT_AS, 0), DATA: (resource.RLIMIT_DATA, 5)}
"""Limits that every process has for itself, and which number of /proc/self/statm they count, in pages. Data is all private memory
that can be written, touched or not (since Linux 4.7)."""


@dataclass(frozen=True, kw_only=True)
class MemoryRoom:
    """Bytes that can still be had, and what says so."""

    free: int
    of: str
    """What limits it, such as "available on this machine"."""


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """Bytes that a process has set aside beside the memory that it has."""

    address: int
    """Of its address space: libraries, stacks, room for an allocator to grow into."""
    data: int
    """Of that, what can be written: stacks, and what an allocator has not handed out yet."""


def host_room(processes: int = 1) -> MemoryRoom:
    """Memory that this process can still have.

    Args:
        processes: of this kind, this one among them, which share what is not limited for each.
    """
    shared = shared_room()
    rooms = [MemoryRoom(free=shared.free // processes, of=shared.of)]
    for of, (limit, place) in OF_EACH_PROCESS.items():
        if (most := _limit(limit)) is not None:
            rooms.append(MemoryRoom(free=max(0, most - _pages(place)), of=of))
    return min(rooms, key=lambda room: room.free)


def room_of_new_process(reserved: Reserved, processes: int = 1, others: int = 0) -> MemoryRoom:
    """Memory that a process can have which is yet to be started, and that inherits this one's limits.

    Args:
        processes: of this kind that will be started; they share what is not limited for each.
        others: bytes of what is shared that other processes will take.
    """
    shared = shared_room()
    rooms = [MemoryRoom(free=max(0, shared.free - others) // processes, of=shared.of)]
    for of, beside in ((ADDRESS_SPACE, reserved.address), (DATA, reserved.data)):
        if (most := _limit(OF_EACH_PROCESS[of][0])) is not None:
            rooms.append(MemoryRoom(free=max(0, most - beside), of=of))
    return min(rooms, key=lambda room: room.free)


def shared_room() -> MemoryRoom:
    """Memory that all processes of this kind can still have together: the machine's, or their cgroup's."""
    return min([MemoryRoom(free=_available(), of="available on this machine"), *_cgroups()], key=lambda room: room.free)


def address_space_limit() -> int | None:
    """Bytes of address space that a process may have; None if there is no limit."""
    return _limit(resource.RLIMIT_AS)


def gpu_room() -> MemoryRoom | None:
    """Memory of the emptiest GPU, as its driver tells it without a library being loaded; None if it does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        free = max(int(line) for line in answer.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return MemoryRoom(free=free << 20, of="on the GPU")


def resident() -> int:
    """Bytes of memory that this process has."""
    return _pages(1)


def room_in_all(processes: int = 1) -> MemoryRoom:
    """Memory that this process may have in all, what it has already included.

    Pages of files that it has mapped can be given back, so they count as free already. What limits each process counts them.

    Args:
        processes: of this kind, this one among them, which share what is not limited for each.
    """
    room = host_room(processes)
    has = resident() if room.of in OF_EACH_PROCESS else _pages(1) - _pages(2)
    return MemoryRoom(free=room.free + has, of=room.of)


def _available() -> int:
    """MemAvailable: what can be had without swapping; where the kernel does not say, all of it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limit(which: int) -> int | None:
    limit = resource.getrlimit(which)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _pages(place: int) -> int:
    """Bytes of this process that a number of statm counts."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[place]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _cgroups() -> Iterator[MemoryRoom]:
    """Room in every cgroup that this process is in and that has a limit; v2, then v1."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _levels(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            yield from _levels(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _levels(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[MemoryRoom]:
    here = root / path.strip("/")
    for place in (here, *here.parents):
        if not place.is_relative_to(root):
            return
        try:
            most = int((place / limit).read_text())  # "max", which is no number, where there is none
            stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            taken = int((place / usage).read_text()) - int(stat.get(reclaimable, 0))
        except (OSError, ValueError):
            continue
        if most < _NO_LIMIT:
            yield MemoryRoom(free=max(0, most - taken), of=f"in the cgroup {place}")
