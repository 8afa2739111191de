"""What Linux offers to keep a tree of processes together; see prctl(2) and proc(5)."""

from __future__ import annotations

import ctypes
import os
import signal
import time

GRACE_SECONDS = 0.1
"""How long a process that the user's code started may outlive it, so that one about to end may do so."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Ask for a signal when the thread that started this process ends; exit now if `parent` is already gone."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(0)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int) -> set[int]:
    """The children of a process, ended ones that nobody waited for included."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it ended while we looked
                continue
            if int(fields[1]) == pid:
                found.add(int(name))
    return found


def anonymous_memory(pid: int) -> int:
    """Bytes of memory that a process and all below it have and that no file backs: what comes free when they end."""
    found = 0
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            found = next((int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:")), 0)
    except OSError:  # it ended
        pass
    return found + sum(anonymous_memory(child) for child in children(pid))


def left_processes(helpers: set[int]) -> bool:
    """Whether a process below this one still runs, other than `helpers`, which started before the user's code ran."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        running = {pid for pid in children(os.getpid()) - helpers if os.waitpid(pid, os.WNOHANG) == (0, 0)}
        if not running:
            return False
        if time.monotonic() > deadline:
            return True
        time.sleep(0.002)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
