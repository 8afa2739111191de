"""The bad input matrix: every kind of broken input gets one clear message and exit status 2, and what is there stays as it is.

Each kind starts from a project and a run that nothing is wrong with, and breaks one thing. The kinds are listed by name in
the files beside this one: (what breaks it, what must be said of it, and the command if it is not `rollbook check run.yaml`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.cli import answer
from pipeline.common import memory
from pipeline.config.run import RunConfig
from pipeline.run.record import save_run
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Evaluation, Prompts, Rollouts, Shaped
from schemas.manifest import digest
from schemas.table import Table

CONFIG: dict[str, Any] = {
    "name": "small",
    "model": {"path": "model"},
    "data": {"train": {"path": "train.jsonl"}, "heldout": {"path": "heldout.jsonl"}, "template": "Q:{question}="},
    "reward": {"components": [{"grader": "exact_match"}]},
}
NAMES = {"rollouts": "a" * 16, "sampled": "b" * 16, "shaped": "c" * 16}
"""Folders of some of the run's artifacts."""
BUDGET = 1_000_000
"""Bytes that an input may take, so that large ones can be small."""


class Project:
    """A directory with run.yaml, train.jsonl, heldout.jsonl, model/ and run/, and ways to break it."""

    rollouts = f"run/artifacts/rollouts/{NAMES['rollouts']}"
    sampled = f"run/artifacts/rollouts/{NAMES['sampled']}"
    shaped = f"run/artifacts/shaped/{NAMES['shaped']}"

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys

    def path(self, name: str) -> Path:
        return self.directory / name

    def rollbook(self, *command: str) -> tuple[int, str, str]:
        """Status, standard output, standard error."""
        status = answer(list(command))
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def refuses(self, break_it: Callable[[Project], Any], said: str, command: tuple[str, ...] = ("check", "run.yaml")) -> None:
        """Break the project; then the command ends with status 2 and one message, and changes nothing."""
        break_it(self)
        before = self._state()
        status, _, err = self.rollbook(*command)
        assert err.startswith("rollbook: ") and err.count("rollbook: ") == 1 and len(err) < 3000, err
        assert said in err
        assert "Traceback" not in err and not any(ord(character) < 32 and character != "\n" for character in err)
        assert status == 2
        assert self._state() == before

    def _state(self) -> dict[str, str]:
        """Every file with its hash, every link with its target."""
        files = [path for path in sorted(self.directory.rglob("*")) if "__pycache__" not in path.parts]
        links = {str(path): f"-> {path.readlink()}" for path in files if path.is_symlink()}
        small = (path for path in files if str(path) not in links and path.is_file() and path.stat().st_size < 50 << 20)
        return links | {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in small}

    # Prompts, configuration, graders

    def write(self, name: str, content: str | bytes | list[Any]) -> None:
        """A file with other content; a list becomes JSONL."""
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        self.path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    def settings(self, **changes: Any) -> None:
        """Other settings, by dotted key with __ for the dot."""
        tree = copy.deepcopy(CONFIG)
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        self.write("run.yaml", yaml.safe_dump(tree))

    def more_yaml(self, text: str) -> None:
        self.write("run.yaml", yaml.safe_dump(CONFIG) + text)

    def train_from(self, path: str, content: str | bytes | list[Any] | None = None, **more: Any) -> None:
        """Training prompts from another place."""
        if content is not None:
            self.write(path, content)
        self.settings(data__train={"path": path, **more})

    def parquet(self, frame: pa.Table, **options: Any) -> None:
        """Training prompts from Parquet."""
        pq.write_table(frame, self.path("train.parquet"), **options)
        self.train_from("train.parquet")

    def grader(self, **component: Any) -> None:
        self.settings(reward__components=[component])

    def own_grader(self, module: str, source: str) -> None:
        """A grader in a module of its own: it stays imported."""
        self.write(f"{module}.py", source)
        self.grader(grader=f"{module}:grade")

    def other_model(self, vocabulary: dict[str, int], **config: Any) -> None:
        """A second model in ./other, with these tokens."""
        shutil.copytree(self.path("model"), self.path("other"))
        self.write("other/config.json", json.dumps(config))
        tokens = json.loads(TOKENIZER)
        tokens["model"] |= {"vocab": vocabulary, "unk_token": next(iter(vocabulary))}
        self.write("other/tokenizer.json", json.dumps(tokens))

    # Artifacts

    def link(self, name: str, target: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self.path(name).symlink_to(target)

    def manifest(self, *path: Any, value: Any) -> None:
        """One value of the rollouts' manifest, changed by somebody who can compute its id."""
        file = self.path(self.rollouts) / "manifest.json"
        tree = json.loads(file.read_text(encoding="utf-8"))
        _put(tree, path, value)
        with suppress(ValueError):  # what has no hash keeps its id
            tree["id"] = digest(tree["content"])
        file.write_text(json.dumps(tree), encoding="utf-8")

    def shard(self, change: Callable[[Path], Any], listed: bool = True) -> None:
        """The rollouts' first shard, changed; `listed`: and the manifest with it, so that hashes are right."""
        part = self.path(self.rollouts) / "part-00000.parquet"
        change(part)
        if listed:
            self.manifest("content", "files", 0, "bytes", value=part.stat().st_size)
            self.manifest("content", "files", 0, "sha256", value=hashlib.sha256(part.read_bytes()).hexdigest())

    def columns(self, change: Callable[[pa.Table], pa.Table]) -> None:
        """The rollouts' first shard, with another table in it."""
        self.shard(lambda part: pq.write_table(change(pq.read_table(part)), part))

    def record(self, *path: Any, value: Any) -> None:
        """One value of run.json."""
        file = self.path("run/run.json")
        tree = json.loads(file.read_text(encoding="utf-8"))
        _put(tree, path, value)
        file.write_text(json.dumps(tree), encoding="utf-8")


def _put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = value


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project and a run that nothing is wrong with."""
    directory = tmp_path_factory.mktemp("sound")
    (directory / "model").mkdir()
    weights = (2).to_bytes(8, "little") + b"{}"
    for name, data in {"config.json": b"{}", "model.safetensors": weights, "tokenizer.json": TOKENIZER}.items():
        (directory / "model" / name).write_bytes(data)
    (directory / "train.jsonl").write_text('{"question": "1+1", "answer": "2"}\n', encoding="utf-8")
    (directory / "heldout.jsonl").write_text('{"question": "2+2", "answer": "4"}\n', encoding="utf-8")
    (directory / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    save_run(_run(Store(directory / "run" / "artifacts")), directory / "run")
    return directory


TOKENIZER = b'{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'


@pytest.fixture
def project(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """A copy of it, as the working directory."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "budget", lambda: BUDGET)
    return Project(tmp_path, capsys)


def _run(store: Store) -> Run:
    question = {"prompt_id": "p", "question": "1+1", "answer": "2", "prompt_text": "Q:1+1=", "metadata": None}
    graded = {"prompt_id": "p", "mode": "sampled", "sample_index": 0, "reward": 1.0, "solved": True}
    advantage = {"group_id": "g0", "advantage": 0.5, "weight": 1.0, "keep": True, "drop_reason": None}
    policy = _made(store, "checkpoint", "import/1")
    train, heldout = (
        _made(store, "prompts", "prompts/1", name=name, tables={"prompts.parquet": (Prompts, [question])})
        for name in ("train", "heldout")
    )
    rollouts = _named(_rollouts(store, policy, train, "train"), "rollouts")
    sampled = _named(_rollouts(store, policy, heldout, "sampled"), "sampled")
    rows = [{**advantage, "sample_index": number} for number in (0, 1)]
    shaped = _made(store, "shaped", "shape/1", {"rollouts": rollouts}, tables={"part-00000.parquet": (Shaped, rows)})
    figures = {"evaluation.parquet": (Evaluation, [{**graded, "completion_tokens": 3, "status": "ok"}])}
    evaluation = _made(store, "evaluation", "evaluate/1", {"policy": policy, "sampled": sampled}, tables=figures)
    step = Iteration(0, policy, Answers(sampled, None, rollouts), evaluation, _named(shaped, "shaped"))
    return Run(RunConfig.model_validate(CONFIG), train, heldout, [step], missing="train 0")


def _rollouts(store: Store, policy: Artifact, prompts: Artifact, purpose: str) -> Artifact:
    row = {
        "prompt_id": "p",
        "prompt_token_ids": [5],
        "completion_token_ids": [7, 8, 9],
        "behavior_logprobs": [-0.5, 0.0, -2.25],
        "prompt_text": "Q:1+1=",
        "completion_text": "2 ✓",
        "answer": "2",
        "reward": 1.0,
        "policy_id": policy.id,
        "policy_version": 0,
        "source": "self",
        "logprobs_mode": "processed_logprobs",
        "engine": "by hand",
        "status": "ok",
    }
    tables = {
        f"part-{number:05d}.parquet": (Rollouts, [{**row, "group_id": f"g{number}", "sample_index": n} for n in (0, 1)])
        for number in (0, 1)
    }
    return _made(store, "rollouts", "generate/1", {"policy": policy, "prompts": prompts}, tables=tables, purpose=purpose)


def _made(
    store: Store,
    kind: Any,
    stage: str,
    parents: dict[str, Artifact] | None = None,
    tables: dict[str, tuple[type[Table], list[dict[str, Any]]]] | None = None,
    **recipe: Any,
) -> Artifact:
    request = Request(kind, stage, recipe, tuple(parent.as_parent(role) for role, parent in (parents or {}).items()))
    with store.work(request) as work:
        assert isinstance(work, Work)
        rows = 0
        for name, (table, content) in (tables or {}).items():
            types = {column: declared.dtype for column, declared in table.columns().items()}
            work.write_table(name, pl.DataFrame([{**dict.fromkeys(types), **row} for row in content], schema=types), table)
            rows += len(content)
        return work.finish({"completions": rows, "tokens": 3 * rows, "iteration": 0})


def _named(artifact: Artifact, name: str) -> Artifact:
    """The same artifact in a folder whose name the kinds know."""
    return load_artifact(artifact.path.rename(artifact.path.with_name(NAMES[name])))
