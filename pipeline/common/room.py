"""How much memory there is, as this process may have it: the machine's, its cgroup's, and its own address space."""

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


@dataclass(frozen=True, kw_only=True)
class MemoryRoom:
    """Bytes that can still be had, and what says so."""

    free: int
    of: str
    """What limits it, such as "available on this machine"."""


def host_room() -> MemoryRoom:
    """Memory that this process can still have."""
    rooms = [shared_room()]
    if (limit := address_space_limit()) is not None:
        rooms.append(MemoryRoom(free=max(0, limit - _mapped()), of=ADDRESS_SPACE))
    return min(rooms, key=lambda room: room.free)


def room_of_new_process(reserved: int) -> MemoryRoom:
    """Memory that a process can have which is yet to be started.

    Args:
        reserved: bytes of address space that it has beside its memory: libraries, stacks, and what allocators set aside.
    """
    rooms = [shared_room()]
    if (limit := address_space_limit()) is not None:
        rooms.append(MemoryRoom(free=max(0, limit - reserved), of=ADDRESS_SPACE))
    return min(rooms, key=lambda room: room.free)


def shared_room() -> MemoryRoom:
    """Memory that all processes of this kind can still have together: the machine's, or their cgroup's."""
    return min([MemoryRoom(free=_available(), of="available on this machine"), *_cgroups()], key=lambda room: room.free)


def address_space_limit() -> int | None:
    """Bytes of address space that a process may have; None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


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
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    """MemAvailable: what can be had without swapping; where the kernel does not say, all of it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _mapped() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
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
