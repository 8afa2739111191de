"""Processes that run code of the user's: what they are given, and a supervisor above each that ends all that it started.

Two processes: a supervisor, which runs no code of the user's, and its child, which does. Linux hands every orphan below the
supervisor to it (PR_SET_CHILD_SUBREAPER), and tells it when the process that wanted the work is gone (PR_SET_PDEATHSIG). So
whatever the user's code started ends with the worker, detached or not: when the child ends, on SIGTERM, or when the process that
wanted the work is killed. The supervisor then ends the way the child did, with its exit status or its signal.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pipeline
from pipeline.common.linux import adopt_orphans, children, die_with_parent

_KEPT_VARIABLES = (
    *("PATH", "HOME", "USER", "TMPDIR", "TZ", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("LD_LIBRARY_PATH", "XDG_CACHE_HOME"),
)
_AWAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def worker_environment() -> dict[str, str]:
    """Variables of a worker: what finds programs and files, and what makes results repeatable. No token gets through.

    One thread per numerical library: workers run beside each other, and threads count against the memory limit.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    root = str(Path(next(iter(pipeline.__path__))).parent)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    fixed = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    return kept | threads | fixed


def supervised(parent: int, work: Callable[[int, int], None]) -> None:
    """Have a child of this process do work, and end with it.

    Args:
        parent: id of the process that wants the work; with its end everything ends.
        work: is given what were file descriptors 0 and 1, which are the user's to read and print with.
    """
    die_with_parent(signal.SIGTERM, parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    adopt_orphans()
    supervisor = os.getpid()
    worker = os.fork()
    if worker == 0:
        os.setpgid(0, 0)
        die_with_parent(signal.SIGKILL, supervisor)
        adopt_orphans()
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        work(*_pipes())
        os._exit(0)
    _end_as(_supervise(worker))


def limit_memory(mib: int) -> None:
    """Limit the address space of this process, for good."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = mib << 20 if hard == resource.RLIM_INFINITY else min(mib << 20, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _pipes() -> tuple[int, int]:
    """Where requests come from and replies go; the user's code reads nothing, and prints on standard error."""
    requests, replies = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    return requests, replies


def _supervise(worker: int) -> int:
    """Wait until the worker ends, or this process is told to; end every process below. Returns the worker's status."""
    with open(os.devnull, "r+b") as nothing:  # the pipes belong to the worker: the other end must see them close
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    status = None
    while status is None and signal.sigwait(_AWAITED) == signal.SIGCHLD:
        status = _reap(os.WNOHANG).get(worker)
    with contextlib.suppress(ProcessLookupError):  # all at once, should they fork faster than they are found below
        os.killpg(worker, signal.SIGKILL)
    while below := children(os.getpid()):
        for pid in below:
            with contextlib.suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)
        status = _reap(0).get(worker, status)
    return signal.SIGKILL if status is None else status


def _reap(flags: int) -> dict[int, int]:
    """Status of each child that has ended; waits for one unless told not to."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        pid, status = os.waitpid(-1, flags)
        while pid:
            ended[pid] = status
            pid, status = os.waitpid(-1, os.WNOHANG)
    return ended


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))
