"""The real command line on the tiny model, in processes of its own; and one finished run that many tests look at."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.server import SETTINGS
from pipeline.run.record import load_run
from pipeline.store import Artifact, Store

ROOT = Path(__file__).resolve().parents[2]
ROLLBOOK = Path(sys.executable).with_name("rollbook")
MINUTES = 60.0

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "iterations": 1,
    "model": {"path": str(ROOT / "data/base")},
    "data": {
        "train": {"path": str(ROOT / "data/arithmetic/train.parquet"), "prompt_id": "prompt_id", "limit": 64},
        "heldout": {"path": str(ROOT / "data/arithmetic/heldout.parquet"), "prompt_id": "prompt_id", "limit": 16},
        "template": "Q:{question}=",
    },
    "engine": {"max_num_seqs": 8, "kv_cache_mib": 32},
    "generate": {"prompts": 8, "samples": 4, "temperature": 0.7, "max_tokens": 48, "shard_groups": 2},
    "reward": {"components": [{"grader": "regex", "args": {"pattern": "A:(-?[0-9]+)$"}}]},
    "train": {"epochs": 2, "batch_completions": 4, "learning_rate": 1e-4, "save_every_steps": 1},
    "evaluate": {"samples": 2, "k": [1, 2], "bootstrap": 20_000},
}
"""8 prompts x 4 samples at temperature 0.7, 16 held-out prompts at temperature 1 and greedy."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str
    seconds: float


class Started:
    """A command that runs. Every process below it has the same TMPDIR, whatever else its environment was stripped of."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="rollbook-"))
        self._out, self._err = self.temporary / "stdout", self.temporary / "stderr"
        self._since = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:  # files: an orphan would hold a pipe open
            self.process = subprocess.Popen(
                [str(ROLLBOOK), *arguments],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**environment, "TMPDIR": str(self.temporary)},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background ignores it
            )

    def wait(self, timeout: float = 10 * MINUTES) -> Ended:
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.end()
            raise
        out, err = self._out.read_text(errors="replace"), self._err.read_text(errors="replace")
        return Ended(status, out, err, time.monotonic() - self._since)

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._err.read_text(errors="replace")

    def until(self, happened: Callable[[], Any], timeout: float = 10 * MINUTES, pace: float = 0.01) -> None:
        """Wait for something that the command does, and look so often: looking takes a processor's time from the command."""
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.process.poll() is None, f"ended before that, with status {self.process.returncode}: {self.wait().err}"
            assert time.monotonic() < deadline, "did not happen"
            time.sleep(pace)

    def processes(self) -> dict[int, str]:
        """Command lines of the command and of everything that it started and that still runs, by process id."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended while we looked
                continue
        return found

    def left_over(self, seconds: float = 15.0) -> dict[int, str]:
        """What still runs when the command is gone and that time has passed; empty as soon as nothing does."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self.left_over():
            os.kill(pid, signal.SIGKILL)


class Rollbook:
    """`rollbook(*arguments)` runs the command to its end; `rollbook.start(*arguments)` lets it run."""

    program = ROLLBOOK

    def __init__(self, home: Path, **environment: str) -> None:
        self._started: list[Started] = []
        self._home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ROLLBOOK_"))}
        self.environment = {
            **kept,
            "PREFECT_HOME": str(home),
            "PREFECT_MEMO_STORE_PATH": str(home / "memo.toml"),
            "COLUMNS": "160",
            **environment,
        }

    def start(self, *arguments: object, cwd: Path | None = None, **environment: str) -> Started:
        self._started.append(Started([str(a) for a in arguments], cwd or self._home, {**self.environment, **environment}))
        return self._started[-1]

    def __call__(self, *arguments: object, cwd: Path | None = None, timeout: float = 10 * MINUTES, **environment: str) -> Ended:
        return self.start(*arguments, cwd=cwd, **environment).wait(timeout)

    def end_all(self) -> None:
        for started in self._started:
            if started.process.poll() is None:
                started.end()
            shutil.rmtree(started.temporary, ignore_errors=True)


@dataclass(frozen=True)
class FinishedRun:
    """A run, and the command that made it."""

    config: Path
    directory: Path
    command: Ended

    @property
    def store(self) -> Store:
        return Store(self.directory / "artifacts")

    def again(self, run: Path) -> tuple[str, Path, str, str]:
        """The command that makes the same run in another directory."""
        return ("run", self.config, "--set", f"run_dir={run}")

    def without(self, run: Path, *stages: str) -> Path:
        """A copy that lacks what these stages of iteration 0 made."""
        first = load_run(self.directory).iterations[0]
        assert first.answers
        made: dict[str, list[Artifact | None]] = {
            "generate": [first.answers.rollouts, first.answers.sampled, first.answers.greedy],
            "evaluate": [first.evaluation],
            "shape": [first.shaped],
            "train": [first.checkpoint],
        }
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.directory, run)
        for artifact in (artifact for stage in stages for artifact in made[stage] if artifact):
            shutil.rmtree(run / artifact.path.relative_to(self.directory))
        return run

    @staticmethod
    def unfinished(run: Path, pattern: str) -> list[Path]:
        """Files of a run that match, in artifacts without a manifest."""
        root = run / "artifacts"
        return sorted(
            path for path in root.glob(pattern) if not (root / Path(*path.relative_to(root).parts[:2]) / "manifest.json").exists()
        )


@pytest.fixture(scope="session")
def rollbook(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command line, with a Prefect database of the session's own."""
    assert ROLLBOOK.exists(), f"no {ROLLBOOK}: install the project into this environment (pip install -e .)"
    command = Rollbook(tmp_path_factory.mktemp("home"))
    yield command
    command.end_all()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollbook]:
    """`rollbook`, but all commands share one Prefect server: for tests that look at something else."""
    home = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Rollbook(home, PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    arguments = [sys.executable, "-m", "flows.server", str(port)]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, env={**SETTINGS, **command.environment}) as server:
        while not answers(f"http://127.0.0.1:{port}/api/health"):
            assert server.poll() is None, "Prefect's server ended at its start"
            time.sleep(0.2)
        yield command
        command.end_all()


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def write_config() -> Callable[..., Path]:
    """write_config(path, **changes): the tiny run's YAML file, its sections updated key by key."""

    def write(path: Path, **changes: Any) -> Path:
        tree = {section: dict(value) if isinstance(value, dict) else value for section, value in TINY.items()}
        for section, change in changes.items():
            tree[section] = {**tree.get(section, {}), **change} if isinstance(change, dict) else change
        path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def finished(rollbook: Rollbook, write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The tiny run, done once, whichever worker of pytest-xdist asks first; the others wait for it. No test changes it."""
    directory = tmp_path_factory.getbasetemp()
    directory = (directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory) / "finished"
    directory.mkdir(exist_ok=True)
    config, run, ended = directory / "tiny.yaml", directory / "run", directory / "ended.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ended.exists():
            command = rollbook("run", write_config(config), "--set", f"run_dir={run}")
            assert command.status == 0, command.err
            ended.write_text(json.dumps(asdict(command)), encoding="utf-8")
    return FinishedRun(config, run, Ended(**json.loads(ended.read_text(encoding="utf-8"))))


@pytest.fixture(scope="session")
def ids() -> Callable[[Path], dict[str, str]]:
    """ids(run_directory): id of every finished artifact, by where it lies in the store."""

    def of(directory: Path) -> dict[str, str]:
        store = Store(directory / "artifacts")
        return {str(artifact.path.relative_to(store.root)): artifact.id for artifact in store.artifacts()}

    return of
