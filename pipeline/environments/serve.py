"""`python -m pipeline.environments.serve PARENT_PID`: loads an environment once, and forks a process for each episode.

What it says over the socket that is its standard input, one JSON value a packet:

    host → server   {"name", "args", "model", "directory", "memory_mib"}     once
    server → host   {"ready": true, "special"} or {"refused": why}           once
    host → server   {"fork": true}, with a socket                            for each process
    server → host   {"pid": number}
    host → server   {"end": pid, "gone"}                                     end it, and everything that it started
    server → host   {"ended": how, in words}

Over an episode's socket, one JSON value a line:

    host → worker   {"prompt", "seed"}, then {"action"} for each turn
    worker → host   an observation (`pipeline.environments.protocol`), with "left" where it left processes behind
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.lines import decode, encode, one_line
from pipeline.common.linux import adopt_orphans, children, die_with_parent, left_processes
from pipeline.common.own_code import serve_from
from pipeline.common.workers import limit_memory, supervised
from pipeline.environments.protocol import Observation, as_start, as_step
from pipeline.environments.registry import BoundEnvironment, resolve

PACKET = 1 << 17
"""Bytes of the longest message to a server."""
GONE_SECONDS = 2.0
"""How long a process whose socket is closed may take to be gone."""


def main() -> None:
    supervised(int(sys.argv[1]), lambda requests, replies: serve(socket.socket(fileno=requests)))


def serve(control: socket.socket) -> None:
    """Fork and end processes until the host closes its end."""
    start = decode(control.recv(PACKET))
    try:
        serve_from(start["directory"])
        bound = resolve(start["name"], start["args"])
        bound.prepare(start["model"])
    except UserError as error:
        control.send(encode({"refused": str(error)[:3000]}))
        return
    except Exception as error:
        control.send(encode({"refused": one_line(f"{type(error).__name__}: {error}")}))
        return
    helpers = children(os.getpid())
    workers: set[int] = set()
    control.send(encode({"ready": True, "special": bound.reads_special_tokens}))
    while True:
        packet, handed, _, _ = socket.recv_fds(control, PACKET, 1)
        if not packet:
            return
        message = decode(packet)
        if "fork" in message:
            pid = _forked(control, handed[0], bound, start["memory_mib"])
            os.close(handed[0])
            workers.add(pid)
            control.send(encode({"pid": pid}))
        else:
            workers.discard(message["end"])
            how = _status(message["end"], GONE_SECONDS if message["gone"] else 0.0)
            _sweep(message["end"], workers | helpers)
            control.send(encode({"ended": how}))


def _forked(control: socket.socket, channel: int, bound: BoundEnvironment, memory_mib: int) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        os.setpgid(0, 0)
        die_with_parent(signal.SIGKILL, server)
        limit_memory(memory_mib)
        answer(socket.socket(fileno=channel), bound, memory_mib)
    finally:
        os._exit(0)


def _status(pid: int, seconds: float) -> str:
    """How a worker ended, in words; waits so long for its end."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return "its process is gone"
        if found:
            return _in_words(status)
        if time.monotonic() >= deadline:
            return "was stopped"
        time.sleep(0.002)


def _sweep(pid: int, others: set[int]) -> None:
    """End a worker's group, and what it left behind: its orphans are this process's children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    while below := children(os.getpid()) - others:
        for one in below:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.kill(one, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one, 0)


def _in_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        names = {one.value: one.name for one in signal.Signals}
        return f"its process ended with signal {number} {names.get(number, '')}".rstrip()
    return f"its process ended with exit status {os.waitstatus_to_exitcode(status)}"


def answer(channel: socket.socket, bound: BoundEnvironment, memory_mib: int) -> None:
    """Play episodes, one after the other, until the host closes its end."""
    adopt_orphans()
    worker = os.getpid()
    out_of_memory = encode({**Observation(error=f"MemoryError (memory limit {memory_mib} MiB)").to_json(), "left": True})
    episode: Any = None
    with channel.makefile("rb") as lines:
        for line in lines:
            message = decode(line)
            try:
                if "action" not in message:
                    episode = None
                    _seed(message["seed"])
                    episode = bound()
                said = _said(episode, message)
                reply = encode({**said.to_json(), **({"left": True} if left_processes(set()) else {})})
            except MemoryError:
                reply = out_of_memory
            if os.getpid() != worker:  # a process that the environment forked, and that came back from it
                os._exit(0)
            channel.sendall(reply)


def _said(episode: Any, message: Mapping[str, Any]) -> Observation:
    try:
        if "action" in message:
            return as_step(episode.step(message["action"]))
        return as_start(episode.start(message["prompt"], message["seed"]))
    except MemoryError:
        raise
    except BaseException as error:
        return Observation(error=one_line(f"{type(error).__name__}: {_text(error)}").removesuffix(":"))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as other:
        return f"a {type(error).__name__} that cannot be shown ({type(other).__name__})"


def _seed(seed: int) -> None:
    """Start the global generators from the episode's seed, for environments that draw from them."""
    random.seed(seed)
    if (module := sys.modules.get("numpy.random")) is not None:
        module.seed(seed % 2**32)


if __name__ == "__main__":
    main()
