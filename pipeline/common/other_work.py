"""How much of a machine's processors others take while a piece of work is done: its wall time says little where that is much."""

from __future__ import annotations

import os
import time
from pathlib import Path

PROC = Path("/proc")
BUSY = (0, 1, 2, 5, 6, 7)
"""Fields of the first line of /proc/stat that are work: user, nice, system, irq, softirq, and what a host gave to others."""


class OtherWork:
    """Measures from here on: cores = (busy time of the machine - that of this process and all below it) / wall time."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._busy, self._own = busy_seconds(), tree_seconds(os.getpid())

    def cores(self) -> float | None:
        """Processor cores that others took, on average; None where the system does not say."""
        busy, passed = busy_seconds(), time.monotonic() - self._begun
        if busy is None or self._busy is None or passed <= 0:
            return None
        others = busy - self._busy - (tree_seconds(os.getpid()) - self._own)
        return round(max(others / passed, 0.0), 2)


def busy_seconds() -> float | None:
    """Processor time that the machine has worked so far, all cores added up; None where the system does not say."""
    try:
        fields = (PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        return sum(int(fields[place]) for place in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def tree_seconds(root: int) -> float:
    """Processor time of a process and of all below it, those included that ended and were waited for."""
    parents, ticks = {}, {}
    for directory in PROC.glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:  # it ended while we looked
            continue
        parents[int(directory.name)] = int(fields[1])
        ticks[int(directory.name)] = sum(map(int, fields[11:15]))
    own = {root}
    while new := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= new
    return sum(ticks.get(pid, 0) for pid in own) / os.sysconf("SC_CLK_TCK")
