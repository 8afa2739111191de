"""The loop of a worker: read an item, call each grader, write each score. The process that runs the user's code."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.common.errors import UserError
from pipeline.common.lines import decode, encode, one_line
from pipeline.common.linux import children, left_processes
from pipeline.common.own_code import serve_from
from pipeline.common.workers import limit_memory
from pipeline.rewards.batches import serve_batches
from pipeline.rewards.protocol import REMARK_CHARACTERS
from pipeline.rewards.registry import BoundGrader, prepare_all, resolve_all
from pipeline.rewards.returned import as_score


@dataclass(frozen=True, slots=True)
class GraderSpec:
    """A component as the pool names it; a worker need not import the config."""

    grader: str
    args: Mapping[str, Any]


def serve(requests: BinaryIO, replies: int) -> None:
    """Answer on the file descriptor `replies` until the pool closes `requests` or this worker must be replaced."""
    start = decode(requests.readline())
    if start.get("batches"):
        with os.fdopen(replies, "wb") as answers:
            serve_batches(start, requests, answers)
        return
    limit = f"memory limit {start['memory_mib']} MiB"
    out_of_memory = encode({"error": f"MemoryError ({limit})", "retire": "memory"})  # made while there is memory for it
    try:
        limit_memory(start["memory_mib"])
        graders = _start(start)
    except UserError as error:
        os.write(replies, encode({"refused": str(error)[:3000]}))
        return
    except Exception as error:  # MemoryError, or a library that does not import, be it for want of memory
        refusal = f"a worker with these graders cannot start ({limit}): {type(error).__name__}: {_text(error)}"
        os.write(replies, encode({"refused": one_line(refusal)}))
        return
    worker, helpers = os.getpid(), children(os.getpid())
    os.write(replies, encode({"ready": True, "notes": [note for grader in graders for note in grader.notes]}))
    for line in requests:
        for i, grader in enumerate(graders):
            reply = _score(grader, line)
            if os.getpid() != worker:  # a process that the grader forked, and that came back from it
                os._exit(0)
            if reply is None:
                os.write(replies, out_of_memory)
                return
            retire = i == len(graders) - 1 and left_processes(helpers)
            os.write(replies, encode(reply | {"retire": "processes"} if retire else reply))
            if retire:
                return


def _start(start: Mapping[str, Any]) -> Sequence[BoundGrader]:
    serve_from(start["directory"])
    components = [GraderSpec(spec["grader"], spec["args"]) for spec in start["components"]]
    graders = resolve_all(components)
    prepare_all(components, graders)
    return graders


def _score(grader: BoundGrader, line: bytes) -> dict[str, Any] | None:
    """The reply for one grader, None when memory ran out. Each grader gets a copy of the item of its own."""
    try:
        completion, answer, prompt, told = decode(line)
        _seed(line.removesuffix(b"," + encode(told)[:-1] + b"]\n") + b"]\n")
        said = as_score(grader(completion, answer, prompt, told))
        remark = {} if said.remark is None else {"remark": str(said.remark)[:REMARK_CHARACTERS]}
    except MemoryError:
        return None
    except BaseException as error:
        return {"error": one_line(f"{type(error).__name__}: {_text(error)}").removesuffix(":")}
    if said.error is not None:
        return {"error": one_line(said.error)} | remark
    return {"score": said.score} | remark


def _seed(item: bytes) -> None:
    """Start the global generators from completion, answer and prompt: a grader that draws gives each item one score, always."""
    for name in ("random", "numpy.random"):
        if (module := sys.modules.get(name)) is not None:
            module.seed(zlib.crc32(item))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as other:
        return f"a {type(error).__name__} that cannot be shown ({type(other).__name__})"
