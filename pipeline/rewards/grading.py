"""The loop of a worker: read an item, call each grader, write each score. Runs the user's code, alone in its process."""

from __future__ import annotations

import math
import numbers
import os
import reprlib
import resource
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.errors import UserError
from pipeline.rewards.processes import children
from pipeline.rewards.protocol import decode, encode, one_line
from pipeline.rewards.registry import BoundGrader, prepare_all, resolve_all

GRACE_SECONDS = 0.1
"""How long a process that a grader started may outlive the grading, so that one just told to end may end."""


@dataclass(frozen=True, slots=True)
class GraderSpec:
    """A component as the pool names it; a worker need not import the config."""

    grader: str
    args: Mapping[str, Any]


def serve(requests: BinaryIO, replies: int) -> None:
    """Answer on the file descriptor `replies` until the pool closes `requests` or this worker must be replaced."""
    out_of_memory = encode({"retire": "memory", "error": "MemoryError"})  # made while there is memory to make it
    start = decode(requests.readline())
    try:
        limit = start["memory_mib"] << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        graders = _start(start)
    except UserError as error:
        os.write(replies, encode({"refused": str(error)[:3000]}))
        return
    except MemoryError:
        refusal = f"reward.memory_mib: {start['memory_mib']} MiB are too few to start a worker with these graders"
        os.write(replies, encode({"refused": refusal}))
        return
    worker, helpers = os.getpid(), children(os.getpid())
    os.write(replies, encode({"ready": True}))
    for line in requests:
        try:
            item = decode(line)
        except RecursionError:
            _reply_all(replies, len(graders), {"error": "RecursionError: the prompt's columns are nested too deeply"})
            continue
        for i, grader in enumerate(graders):
            try:
                reply = _score(grader, item, line)
            except MemoryError:
                os.write(replies, out_of_memory)
                return
            finally:
                if os.getpid() != worker:  # a process that the grader forked, and that came back from it
                    os._exit(0)
            retire = i == len(graders) - 1 and _left_processes(helpers)
            os.write(replies, encode(reply | {"retire": "processes"} if retire else reply))
            if retire:
                return


def _start(start: Mapping[str, Any]) -> Sequence[BoundGrader]:
    sys.path.insert(0, start["directory"])
    components = [GraderSpec(spec["grader"], spec["args"]) for spec in start["components"]]
    graders = resolve_all(components)
    prepare_all(components, graders)
    return graders


def _score(grader: BoundGrader, item: Sequence[Any], line: bytes) -> dict[str, Any]:
    completion, answer, prompt = item
    try:
        _seed(line)
        returned = grader(completion, answer, prompt)
        score = float(returned) if isinstance(returned, numbers.Real) else None
    except MemoryError:
        raise
    except BaseException as error:
        return {"error": one_line(f"{type(error).__name__}: {_text(error)}").rstrip(": ")}
    if score is None or not math.isfinite(score):
        return {"error": one_line(f"returned {_text(returned, shown=True)}, expected a finite number")}
    return {"score": score}


def _seed(line: bytes) -> None:
    """Start the global generators from the item's bytes: a grader that draws gives each item one score, always."""
    if (random := sys.modules.get("random")) is not None:
        random.seed(zlib.crc32(line))
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed(zlib.crc32(line))


def _text(value: Any, *, shown: bool = False) -> str:
    try:
        return reprlib.repr(value) if shown else str(value)
    except BaseException as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def _reply_all(replies: int, count: int, reply: dict[str, Any]) -> None:
    os.write(replies, encode(reply) * count)


def _left_processes(helpers: set[int]) -> bool:
    """Whether a process that grading started still runs, other than `helpers`, which started with the worker."""
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
