"""A small project on disk, and the command line as a user runs it: `rollbook` in a process, in a directory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

CONFIG: dict[str, Any] = {
    "name": "small",
    "model": {"path": "model"},
    "data": {"train": {"path": "train.jsonl"}, "heldout": {"path": "heldout.jsonl"}, "template": "Q:{question}="},
    "reward": {"components": [{"grader": "exact_match"}]},
    "evaluate": {"samples": 2},
}
FORKS = """
    import json, os, sys
    import flows.chain, pipeline.prepare.check, flows.cli, pipeline.config.load, flows.answers, pipeline.run.record

    for line in sys.stdin:
        order = json.loads(line)
        if (child := os.fork()) == 0:
            os.chdir(order["directory"])
            for number, name in enumerate(("out.txt", "err.txt"), start=1):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            sys.argv = ["rollbook", *order["arguments"]]
            try:
                flows.cli.main()
            except SystemExit as end:
                os._exit(end.code)  # all is flushed; taking the interpreter down costs more than the command
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""`rollbook` once per line: each is a process of its own that has the interpreter's start and the imports behind it."""


class Said(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Rollbook = Callable[..., Said]


@pytest.fixture(scope="session")
def forks(surroundings: None) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-c", textwrap.dedent(FORKS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def rollbook(forks: subprocess.Popen[str], tmp_path: Path) -> Rollbook:
    """rollbook("check", "run.yaml"): the command in `tmp_path`."""

    def run(*arguments: str) -> Said:
        assert forks.stdin is not None and forks.stdout is not None
        forks.stdin.write(json.dumps({"directory": str(tmp_path), "arguments": arguments}) + "\n")
        forks.stdin.flush()
        status = int(forks.stdout.readline())
        return Said(status, *((tmp_path / name).read_text(encoding="utf-8") for name in ("out.txt", "err.txt")))

    return run


@pytest.fixture
def project(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    """A directory where `rollbook check run.yaml` has nothing to say against."""
    write_model(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    (tmp_path / "heldout.jsonl").write_text('{"question": "2+2", "answer": "4"}\n', encoding="utf-8")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return tmp_path
