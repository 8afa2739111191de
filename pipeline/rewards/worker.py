"""`python -m pipeline.rewards.worker PARENT_PID`: one reward worker, started by a pool.

Two processes: a supervisor, which runs no code of the user's, and its child, which grades. Linux hands every orphan
below the supervisor to it (PR_SET_CHILD_SUBREAPER), and tells it when the pool's process is gone (PR_SET_PDEATHSIG). So
whatever a grader started ends with the worker, detached or not: when the child ends, on SIGTERM, or when the pool's
process is killed. The supervisor then ends the way the child did, with its exit status or its signal.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys

from pipeline.rewards.linux import adopt_orphans, children, die_with_parent

_AWAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main() -> None:
    die_with_parent(signal.SIGTERM, int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    adopt_orphans()
    supervisor = os.getpid()
    grader = os.fork()
    if grader == 0:
        os.setpgid(0, 0)
        die_with_parent(signal.SIGKILL, supervisor)
        adopt_orphans()
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        _grade()
    status = _supervise(grader)
    _end_as(status)


def _grade() -> None:
    """Take the pipes away from file descriptors 0 and 1, which are the user's to read and print with, and grade."""
    requests, replies = os.dup(0), os.dup(1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]

    from pipeline.rewards.grading import serve

    with open(requests, "rb", buffering=1 << 16) as lines:
        serve(lines, replies)
    os._exit(0)


def _supervise(grader: int) -> int:
    """Wait until the grader ends or the worker is told to; end every process below. Returns the grader's status."""
    with open(os.devnull, "r+b") as nothing:  # the pipes belong to the grader: the pool must see them close
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    status = None
    while status is None and signal.sigwait(_AWAITED) == signal.SIGCHLD:
        status = _reap(os.WNOHANG).get(grader)
    with contextlib.suppress(ProcessLookupError):  # all at once, should they fork faster than they are found below
        os.killpg(grader, signal.SIGKILL)
    while below := children(os.getpid()):
        for pid in below:
            with contextlib.suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)
        status = _reap(0).get(grader, status)
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


if __name__ == "__main__":
    main()
