"""The bad input matrix: every kind of broken input gets one clear message and exit status 2, and what is there stays as it is.

Each kind starts from a project or a run that nothing is wrong with, and breaks one thing. `COUNT` kinds are listed by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.cli import answer
from pipeline import memory
from pipeline.artifacts import Artifact, Request, Store, Work
from pipeline.config import RunConfig
from pipeline.run import Answers, Iteration, Run, save_run
from schemas import Evaluation, Prompts, Rollouts, Shaped
from schemas.manifest import digest
from schemas.table import Table

CONFIG: dict[str, Any] = {
    "name": "small",
    "model": {"path": "model"},
    "data": {"train": {"path": "train.jsonl"}, "heldout": {"path": "heldout.jsonl"}, "template": "Q:{question}="},
    "reward": {"components": [{"grader": "exact_match"}]},
}
CHECK = ("check", "run.yaml")
SHOW = ("show", "run/artifacts/rollouts/R")
EMPTY_WEIGHTS = (2).to_bytes(8, "little") + b"{}"
Break = Callable[[Path], None]


class Kind(NamedTuple):
    """One way in which input can be bad."""

    break_it: Break
    said: str
    """Part of the message: where, what was found, what was expected, what to do."""
    command: tuple[str, ...] = CHECK
    status: int = 2


# How things are broken. Each returns a function of the directory.


def write(name: str, content: str | bytes | list[Any]) -> Break:
    """A file with other content; a list becomes JSONL."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data)  # type: ignore[return-value]


def settings(**changes: Any) -> Break:
    """The config with other values, by dotted key (with __ for the dot)."""

    def break_it(directory: Path) -> None:
        tree = json.loads(json.dumps(CONFIG))
        for key, value in changes.items():
            *parents, last = key.split("__")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        (directory / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    return break_it


def more_yaml(text: str) -> Break:
    return lambda directory: (directory / "run.yaml").write_text(yaml.safe_dump(CONFIG) + text, encoding="utf-8")  # type: ignore[return-value]


def parquet(frame: pa.Table, **options: Any) -> Break:
    """Training prompts in Parquet."""

    def break_it(directory: Path) -> None:
        pq.write_table(frame, directory / "train.parquet", **options)
        settings(data__train={"path": "train.parquet"})(directory)

    return break_it


def train_from(path: str, make: Break = lambda directory: None, **more: Any) -> Break:
    def break_it(directory: Path) -> None:
        make(directory)
        settings(data__train={"path": path, **more})(directory)

    return break_it


def grader(**component: Any) -> Break:
    return settings(reward__components=[component])


def own_grader(source: str, name: str = "mine:grade", **more: Any) -> Break:
    def break_it(directory: Path) -> None:
        (directory / f"{name.split(':')[0]}.py").write_text(source, encoding="utf-8")
        grader(grader=name, **more)(directory)

    return break_it


def without(name: str) -> Break:
    return lambda directory: (directory / name).unlink()


def link(name: str, target: str) -> Break:
    def break_it(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)

    return break_it


def manifest(change: Callable[[dict[str, Any]], None], kind: str = "rollouts") -> Break:
    """An artifact's manifest, changed by somebody who can compute its id."""

    def break_it(directory: Path) -> None:
        file = next((directory / "run" / "artifacts" / kind).glob("*/manifest.json"))
        value = json.loads(file.read_text(encoding="utf-8"))
        change(value)
        try:
            value["id"] = digest(value["content"])
        except ValueError:
            pass  # what cannot be hashed keeps its id
        file.write_text(json.dumps(value), encoding="utf-8")

    return break_it


def manifest_text(text: str | bytes) -> Break:
    def break_it(directory: Path) -> None:
        file = next((directory / "run" / "artifacts" / "rollouts").glob("*/manifest.json"))
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    return break_it


def shard(change: Callable[[Path], None], listed: bool = True) -> Break:
    """The first shard of the rollouts, changed; `listed`: and the manifest with it, so that hashes are right."""

    def break_it(directory: Path) -> None:
        part = next((directory / "run" / "artifacts" / "rollouts").glob("*/part-00000.parquet"))
        change(part)
        if listed:

            def relist(value: dict[str, Any]) -> None:
                entry = next(file for file in value["content"]["files"] if file["path"] == part.name)
                entry |= {"bytes": part.stat().st_size, "sha256": hashlib.sha256(part.read_bytes()).hexdigest()}

            manifest(relist)(directory)

    return break_it


def columns(change: Callable[[pa.Table], pa.Table], **options: Any) -> Break:
    """The first shard with other columns."""
    return shard(lambda part: pq.write_table(change(pq.read_table(part)), part, **options))


def record(change: Callable[[dict[str, Any]], None]) -> Break:
    def break_it(directory: Path) -> None:
        file = directory / "run" / "run.json"
        value = json.loads(file.read_text(encoding="utf-8"))
        change(value)
        file.write_text(json.dumps(value), encoding="utf-8")

    return break_it


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set something in a tree."""

    def change(tree: dict[str, Any]) -> None:
        node: Any = tree
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


def bomb(directory: Path) -> None:
    """One text of 4 MB that 20,000 rows share: 1 KB on disk, 80 GB as text."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["A" * 4_000_000]))
    pq.write_table(pa.table({"question": texts, "answer": texts}), directory / "train.parquet", compression="zstd")


def flip(part: Path, place: int) -> None:
    data = bytearray(part.read_bytes())
    data[place] ^= 0xFF
    part.write_bytes(bytes(data))


def saved_dataset(filename: str) -> Break:
    def break_it(directory: Path) -> None:
        (directory / "saved").mkdir()
        (directory / "saved" / "dataset_info.json").write_text("{}", encoding="utf-8")
        state = {"_data_files": [{"filename": filename}], "_fingerprint": "a", "_format_type": None}
        (directory / "saved" / "state.json").write_text(json.dumps(state), encoding="utf-8")

    return break_it


PROMPT = {"question": "1+1", "answer": "2"}
PROMPTS: dict[str, Kind] = {
    "prompts: no such file": Kind(train_from("nowhere.jsonl"), "nowhere.jsonl: no such file or directory"),
    "prompts: empty file": Kind(write("train.jsonl", ""), "train.jsonl: no rows"),
    "prompts: broken JSON": Kind(write("train.jsonl", '{"question": \n'), "train.jsonl, line 1: not valid JSON"),
    "prompts: no JSON object": Kind(write("train.jsonl", "[1]\n"), "line 1: expected an object such as"),
    "prompts: a name twice in an object": Kind(
        write("train.jsonl", '{"question": "a", "question": "b", "answer": "1"}'), "line 1: 'question' is there twice"
    ),
    "prompts: lists inside lists": Kind(write("train.jsonl", "[" * 100_000), "line 1: not valid JSON: too many lists"),
    "prompts: deep but valid": Kind(
        write("train.jsonl", '{"question": "a", "answer": "1", "x": ' + "[" * 200 + "]" * 200 + "}"),
        "line 1: more than 64 lists or objects inside one another",
    ),
    "prompts: a number of 5,000 digits": Kind(
        write("train.jsonl", '{"question": "a", "answer": ' + "9" * 5000 + "}"), "line 1: not valid JSON: Exceeds the limit"
    ),
    "prompts: a line of 17 MB": Kind(
        write("train.jsonl", '{"question": "' + "a" * (17 << 20) + '"}'), "train.jsonl, line 1: longer than 16.8 MB"
    ),
    "prompts: not UTF-8": Kind(
        write("train.jsonl", b'{"question": "\xff", "answer": "1"}'), "line 1: not UTF-8 text: invalid start byte at byte 14"
    ),
    "prompts: UTF-16": Kind(write("train.jsonl", json.dumps(PROMPT).encode("utf-16")), "line 1: not UTF-8 text"),
    "prompts: half a surrogate pair": Kind(
        write("train.jsonl", '{"question": "\\ud83d", "answer": "1"}'), "line 1: not text: surrogates not allowed"
    ),
    "prompts: no such column": Kind(
        write("train.jsonl", [{"q": "a", "answer": "1"}]), "train.jsonl: no column 'question' for the question; it has q, answer"
    ),
    "prompts: empty question": Kind(write("train.jsonl", [{**PROMPT, "question": " "}]), "line 1: breaks the rule: question is"),
    "prompts: answer is null": Kind(write("train.jsonl", [{**PROMPT, "answer": None}]), "answer is null"),
    "prompts: answer is a list": Kind(
        write("train.jsonl", [PROMPT, {"question": "b", "answer": ["1"]}]), "line 2: column answer holds a list, expected text"
    ),
    "prompts: the same row twice": Kind(write("train.jsonl", [PROMPT, PROMPT]), "train.jsonl, line 2: repeats line 1"),
    "prompts: one question, two answers": Kind(
        write("train.jsonl", [PROMPT, {**PROMPT, "answer": "3"}]), "Its question is there with another answer"
    ),
    "prompts: an id twice": Kind(
        train_from("t.jsonl", write("t.jsonl", [{**PROMPT, "id": 1}, {"question": "b", "answer": "1", "id": 1}]), prompt_id="id"),
        "t.jsonl, line 1: prompt_id is there twice ('1'). Give every row an id of its own",
    ),
    "prompts: answer without the pattern": Kind(
        train_from("train.jsonl", answer_pattern="#### (.+)$"), "line 1: column answer does not match answer_pattern"
    ),
    "prompts: broken pattern": Kind(train_from("train.jsonl", answer_pattern="(["), "answer_pattern: not a regular expression"),
    "prompts: not one good row": Kind(
        train_from("train.jsonl", write("train.jsonl", ["a", {}]), bad_rows="set_aside"), "2 of 2 rows do not fit.\n  Mend them."
    ),
    "prompts: another kind of file": Kind(train_from("t.csv", write("t.csv", "a,b")), "t.csv: unknown kind of file"),
    "prompts: a pointer of Git LFS": Kind(
        write("train.jsonl", "version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer, not the data that it stands for"
    ),
    "prompts: no Parquet": Kind(train_from("t.parquet", write("t.parquet", b"PAR1")), "t.parquet: cannot be read: "),
    "prompts: Parquet cut off": Kind(
        train_from("t.parquet", write("t.parquet", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1")), "t.parquet: cannot be read: "
    ),
    "prompts: Parquet with a column twice": Kind(
        parquet(pa.table([["a"], ["b"]], names=["question", "question"])), "train.parquet: column 'question' is there twice"
    ),
    "prompts: Parquet with text that is not UTF-8": Kind(
        parquet(pa.table({"question": pa.array([b"\xff\xfe"]).view(pa.string()), "answer": ["1"]})),
        "train.parquet: cannot be read: ",
    ),
    "prompts: Parquet with bytes for text": Kind(
        parquet(pa.table({"question": [b"a"], "answer": ["1"]})), "row 0: column question holds a bytes, expected text"
    ),
    "prompts: Parquet that unfolds to 80 GB": Kind(
        train_from("train.parquet", bomb), "train.parquet: holds more than the 1.0 MB that prompts may take on this machine"
    ),
    "prompts: Parquet that says it is larger than memory": Kind(
        parquet(pa.table({"question": pa.nulls(100_000, pa.int8())})), "train.parquet: says that it expands to 25.6 MB, more than"
    ),
    "prompts: a dataset with files elsewhere": Kind(
        train_from("saved", saved_dataset("../../secret.arrow")), "lists '../../secret.arrow', which lies outside the dataset"
    ),
    "prompts: a dataset without its files": Kind(
        train_from("saved", saved_dataset("data.arrow")), "saved: cannot be loaded as a Hugging Face dataset"
    ),
    "prompts: a dataset of the hub, without the hub": Kind(
        train_from("owner/name"), "owner/name: no such file or directory, and cannot be loaded as a Hugging Face dataset"
    ),
    "prompts: held-out questions that are trained on": Kind(
        write("heldout.jsonl", [PROMPT]), "heldout.jsonl: 1 held-out questions are also in train.jsonl"
    ),
}

CONFIGS: dict[str, Kind] = {
    "config: no such file": Kind(without("run.yaml"), "run.yaml: no such config file"),
    "config: a directory": Kind(lambda directory: None, "model: cannot be read", ("check", "model")),
    "config: not UTF-8": Kind(write("run.yaml", b"name: \xff"), "run.yaml: cannot be read"),
    "config: no mapping": Kind(write("run.yaml", "- 1"), "run.yaml: expected a mapping such as `name: demo`, found list"),
    "config: broken YAML": Kind(write("run.yaml", "name: [\n"), "run.yaml: not valid YAML: "),
    "config: a control character": Kind(write("run.yaml", "name: a\x07"), "run.yaml: not valid YAML: unacceptable character"),
    "config: two documents": Kind(write("run.yaml", "name: a\n---\nname: b\n"), "expected a single document"),
    "config: a key twice": Kind(more_yaml("name: b\n"), "run.yaml: not valid YAML: the key 'name' is there twice (line "),
    "config: a tag that runs code": Kind(
        more_yaml("store: !!python/object/apply:os.system ['touch made']\n"), "tags are not read (line "
    ),
    "config: a harmless tag": Kind(more_yaml("store: !!str 3\n"), "tags are not read (line "),
    "config: aliases that unfold": Kind(
        more_yaml(
            "".join(["x0: &x0 [1]\n", *(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 12))]),
        ),
        "unfolds into more than 100,000 values",
    ),
    "config: merges that unfold": Kind(
        more_yaml(
            "".join(["x0: &x0 {a: 1}\n", *(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}]}}\n" for i in range(1, 12))]),
        ),
        "unfolds into more than 100,000 values",
    ),
    "config: an alias of what it lies in": Kind(more_yaml("store: &x [*x]\n"), "an alias that stands for what it lies in"),
    "config: lists inside lists": Kind(more_yaml("store: " + "[" * 2000 + "\n"), "too many lists or mappings inside one another"),
    "config: no day of the calendar": Kind(more_yaml("store: 2024-13-45\n"), "month must be in 1..12 (line "),
    "config: a number of 5,000 digits": Kind(more_yaml("seed: " + "9" * 5000 + "\n"), "Exceeds the limit (4300 digits)"),
    "config: true for a number": Kind(settings(train__epochs=True), "train.epochs: expected another value than true or false"),
    "config: yes for a number": Kind(more_yaml("iterations: yes\n"), "iterations: expected another value than true or false"),
    "config: true in an algorithm": Kind(
        settings(train__algorithm_args={"low": True}), "train.algorithm_args: low: expected another value than true or false"
    ),
    "config: an unknown key": Kind(settings(train__epoch=3), "train.epoch: unknown key; did you mean `epochs`?"),
    "config: a number out of range": Kind(settings(generate__top_p=1.5), "generate.top_p: Input should be less than or equal"),
    "config: infinity": Kind(settings(train__learning_rate=float("inf")), "train.learning_rate: Input should be a finite number"),
    "config: a name that leaves its directory": Kind(settings(name="../../etc"), "name: String should match pattern"),
    "config: text for a section": Kind(settings(train="fast"), "train: expected a section of settings, found 'fast'"),
    "config: an unknown algorithm": Kind(settings(train__algorithm="gpro"), "no algorithm 'gpro'; did you mean 'grpo'?"),
    "config: no question in the template": Kind(settings(data__template="Q:"), "data.template: has no {question} in it"),
    "config: chat without a chat template": Kind(
        settings(data__chat=True), "data.chat: this model's tokenizer has no chat template. Set chat: false"
    ),
}

REWARDS: dict[str, Kind] = {
    "reward: an unknown grader": Kind(grader(grader="exact"), "components.0 (exact): no such grader; did you mean exact_match?"),
    "reward: no such module": Kind(grader(grader="nowhere:grade"), "no module 'nowhere' in the working directory"),
    "reward: no such function": Kind(own_grader("def grad(a, b, c): ..."), "module mine has no 'grade'; did you mean grad?"),
    "reward: a module that fails": Kind(own_grader("1 / 0"), "importing mine failed: ZeroDivisionError"),
    "reward: a module that exits": Kind(own_grader("raise SystemExit(3)"), "importing mine failed: SystemExit: 3"),
    "reward: a part of Python": Kind(grader(grader="subprocess:run"), "part of Python; a grader is a function of your own"),
    "reward: too few arguments": Kind(own_grader("def grade(completion): ..."), "is called as (completion, answer, prompt"),
    "reward: a coroutine": Kind(own_grader("async def grade(a, b, c): ..."), "is an `async def`; a grader is a plain function"),
    "reward: an unknown argument": Kind(
        grader(grader="regex", args={"patern": "x"}), "unknown arg `patern`; did you mean `pattern`?"
    ),
    "reward: an argument of another type": Kind(
        grader(grader="regex", args={"pattern": 3}), "args.pattern: expected str, found 3"
    ),
    "reward: a broken pattern": Kind(grader(grader="regex", args={"pattern": "(["}), "components.0 (regex): "),
    "reward: an infinite weight": Kind(
        grader(grader="exact_match", weight=float("nan")), "weight is nan, expected a finite number"
    ),
    "reward: two of one name": Kind(
        settings(reward__components=[{"grader": "exact_match"}] * 2), "two components write reward_exact_match"
    ),
}

MODELS: dict[str, Kind] = {
    "model: no such directory": Kind(settings(model__path="nowhere"), "model.path: no directory nowhere"),
    "model: a file": Kind(settings(model__path="./train.jsonl"), "model.path: no directory ./train.jsonl"),
    "model: not to be had": Kind(settings(model__path="owner/name"), "owner/name is no local directory and could not be had"),
    "model: no config.json": Kind(without("model/config.json"), "model: not a Hugging Face model directory"),
    "model: broken config.json": Kind(write("model/config.json", "{"), "model/config.json: not valid JSON"),
    "model: deep config.json": Kind(write("model/config.json", "[" * 100_000), "model/config.json: not valid JSON"),
    "model: config.json of another shape": Kind(write("model/config.json", "[]"), "expected a JSON object, found list"),
    "model: code of its own": Kind(
        write("model/config.json", '{"auto_map": {"AutoModel": "evil.Model"}}'), "needs Python code that ships with it. Read that"
    ),
    "model: pickled weights only": Kind(
        lambda directory: (directory / "model/model.safetensors").rename(directory / "model/pytorch_model.bin"),  # type: ignore[arg-type,return-value]
        "model: no .safetensors weights. Pickled weights are not read; convert them with",
    ),
    "model: weights cut off": Kind(write("model/model.safetensors", EMPTY_WEIGHTS[:-1]), "model.safetensors: not whole: "),
    "model: weights with a header of 1 TB": Kind(
        write("model/model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"), "not whole: Error while deserializing header"
    ),
    "model: weights that are a pickle": Kind(
        write("model/model.safetensors", b"\x80\x04\x95" * 9), "model.safetensors: not whole"
    ),
    "model: a pointer of Git LFS": Kind(
        write("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
        "it is a Git LFS pointer, `git lfs pull`",
    ),
    "model: an index that names a missing file": Kind(
        write("model/model.safetensors.index.json", '{"weight_map": {"a": "other.safetensors"}}'),
        "names other.safetensors, which is",
    ),
    "model: an index that names a file elsewhere": Kind(
        write("model/model.safetensors.index.json", '{"weight_map": {"a": "../../x.safetensors"}}'), "names ../../x.safetensors"
    ),
    "model: a link to a file elsewhere": Kind(
        link("model/tokenizer.json", "/etc/hostname"), "tokenizer.json: a link to /etc/hostname"
    ),
    "model: no tokenizer": Kind(without("model/tokenizer.json"), "model: no tokenizer (such as tokenizer.json)"),
}

TABLES: dict[str, Kind] = {
    "table: not Parquet": Kind(shard(lambda part: part.write_bytes(b"PAR1" * 9)), "part-00000.parquet: not a readable Parquet", SHOW),  # type: ignore[arg-type,return-value]
    "table: encrypted": Kind(shard(lambda part: part.write_bytes(b"PARE" + bytes(40) + b"PARE")), "not a readable Parquet", SHOW),  # type: ignore[arg-type,return-value]
    "table: cut off": Kind(
        shard(lambda part: os.truncate(part, 100), listed=False), "part-00000.parquet: 100 bytes, the manifest says ", SHOW
    ),
    "table: a bit flipped": Kind(
        shard(lambda part: flip(part, 200), listed=False), "was changed after it was written", ("diff", *SHOW[1:] * 2)
    ),
    "table: pages that are garbage": Kind(shard(lambda part: flip(part, 40)), "a table cannot be read: ", SHOW),
    "table: a column is missing": Kind(
        columns(lambda table: table.drop_columns(["policy_id"])), "column policy_id (string) is missing", SHOW
    ),
    "table: a column too many": Kind(
        columns(lambda table: table.append_column("x", table["seed"])), "column x is not part of table rollouts version 1", SHOW
    ),
    "table: a column twice": Kind(
        columns(lambda table: table.append_column("seed", table["seed"])), "column seed is there 2 times", SHOW
    ),
    "table: a column of another type": Kind(
        columns(lambda table: table.set_column(0, "group_id", table["seed"])), "column group_id is int64, expected string", SHOW
    ),
    "table: rewards as text": Kind(
        columns(lambda table: table.append_column("reward_x", table["status"])), "column reward_x is string, expected double", SHOW
    ),
    "table: 1,001 columns of rewards": Kind(
        columns(lambda table: pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **{f"reward_{i}": table["reward"] for i in range(1001)}})),
        "columns, expected at most",
        SHOW,
    ),
    "table: a row group larger than memory": Kind(
        columns(lambda table: pa.concat_tables([table] * 8000)), "row group 0 says that it expands to ", SHOW
    ),
    "table: of a later version": Kind(
        manifest(put("content", "files", 0, "table", value="rollouts/9")), "table rollouts version 9; this version of rollbook reads 1", SHOW
    ),
    "table: rows with one key": Kind(
        columns(lambda table: pa.concat_tables([table, table])), "rows with the same group_id + sample_index", ("diff", SHOW[1], "run/artifacts/rollouts/S")
    ),
}  # fmt: skip

MANIFESTS: dict[str, Kind] = {
    "manifest: absent": Kind(without("run/artifacts/rollouts/R/manifest.json"), "neither an artifact (a directory with manifest", SHOW),
    "manifest: empty": Kind(manifest_text(""), "manifest.json: not a valid manifest: Expecting value", SHOW),
    "manifest: not UTF-8": Kind(manifest_text(b"\xff"), "manifest.json: not a valid manifest: 'utf-8' codec", SHOW),
    "manifest: a list": Kind(manifest_text("[]"), "manifest.json: not a valid manifest: ", SHOW),
    "manifest: lists inside lists": Kind(manifest_text("[" * 100_000), "manifest.json: not a valid manifest: ", SHOW),
    "manifest: 65 MB": Kind(
        lambda directory: os.truncate(directory / "run/artifacts/rollouts/R/manifest.json", 65 << 20),
        "manifest.json: not a manifest: it has 68,157,440 bytes",
        SHOW,
    ),
    "manifest: of a later format": Kind(manifest(put("format", value="rollbook/9")), "format 'rollbook/9'; this version of", SHOW),
    "manifest: of another id": Kind(
        lambda directory: manifest_text(
            (directory / "run/artifacts/rollouts/R/manifest.json").read_text().replace('"completions": 4', '"completions": 5')
        )(directory),
        "manifest.json: its content hashes to another id than it states",
        SHOW,
    ),
    "manifest: an unknown kind": Kind(manifest(put("content", "kind", value="secrets")), "content.kind: Input should be", SHOW),
    "manifest: an unknown field": Kind(manifest(put("content", "x", value=1)), "content.x: Extra inputs are not permitted", SHOW),
    "manifest: NaN": Kind(manifest(put("content", "summary", "tokens", value=float("nan"))), "not a valid manifest: Out of range", SHOW),
    "manifest: half a surrogate pair": Kind(manifest(put("content", "key", value="\ud800")), "manifest.json: not a valid manifest: ", SHOW),
    "manifest: text for a figure": Kind(manifest(put("content", "summary", "tokens", value="many")), "summary.tokens is no number", SHOW),
    "manifest: no time of day": Kind(manifest(put("provenance", "created", value="now")), "provenance.created: Invalid isoformat", SHOW),
    "manifest: a negative size": Kind(manifest(put("content", "files", 0, "bytes", value=-1)), "content.files.0.bytes: Input should", SHOW),
    **{
        f"manifest: a path {name}": Kind(
            manifest(put("content", "files", 0, "path", value=path)), f"lists {path!r}, which lies outside the artifact", SHOW
        )
        for name, path in {
            "that climbs out": "../../../secret",
            "from the root": "/etc/passwd",
            "that climbs out half way": "a/../../../secret",
            "with a backslash": "..\\secret",
            "with an escape sequence": "\x1b[2Jpart",
            "that is empty": "",
        }.items()
    },
    "manifest: a file that is missing": Kind(
        without("run/artifacts/rollouts/R/part-00001.parquet"), "part-00001.parquet: missing, the manifest says ", SHOW
    ),
    "manifest: a link in place of a file": Kind(
        link("run/artifacts/rollouts/R/part-00001.parquet", "/etc/hostname"), "a link to /etc/hostname; artifacts hold files only", SHOW
    ),
    "manifest: a file that is not listed": Kind(
        write("run/artifacts/rollouts/R/pytorch_model.bin", b"\x80"), "pytorch_model.bin: not in the manifest", ("diff", *SHOW[1:] * 2)
    ),
}  # fmt: skip

RUNS: dict[str, Kind] = {
    "run: no run there": Kind(lambda directory: None, "model: no run there (it has no run.json)", ("status", "model")),
    "run: broken record": Kind(write("run/run.json", "{"), "run/run.json: not a valid run record", ("status", "run")),
    "run: deep record": Kind(write("run/run.json", "[" * 100_000), "run/run.json: not a valid run record", ("status", "run")),
    "run: record without a part": Kind(record(lambda value: value.pop("iterations")), "it has no 'iterations'", ("status", "run")),  # type: ignore[arg-type,return-value]
    "run: record of a later format": Kind(record(put("format", value="rollbook-run/9")), "format 'rollbook-run/9'", ("status", "run")),
    "run: an artifact that is gone": Kind(
        lambda directory: shutil.rmtree(directory / "run/artifacts/shaped"), "not a finished artifact (it has no manifest.json)", ("report", "run")
    ),
    "run: another artifact in its place": Kind(
        record(put("iterations", 0, "rollouts", "id", value="0" * 64)), "the run recorded 0000000000000000", ("report", "run")
    ),
    "run: an unknown setting": Kind(record(put("config", "x", value=1)), "run/run.json: not a valid run record: ", ("status", "run")),
}  # fmt: skip

TOOLS: dict[str, Kind] = {
    "tool: nothing at the path": Kind(lambda directory: None, "nowhere: neither an artifact", ("show", "nowhere")),
    "tool: a reward that is no comparison": Kind(lambda directory: None, "--reward big: expected a comparison", (*SHOW, "--reward", "big")),
    "tool: an unknown status": Kind(lambda directory: None, "--status fine: expected one of ok, truncated", (*SHOW, "--status", "fine")),
    "tool: an unknown order": Kind(lambda directory: None, "--sort age: expected one of reward", (*SHOW, "--sort", "age")),
    "tool: an unknown table": Kind(lambda directory: None, "--table x: expected one of prompts", (*SHOW, "--table", "x")),
    "tool: a filter of another table": Kind(
        lambda directory: None, "--reward: for completions only", ("show", "run/artifacts/shaped/S", "--reward", "1")
    ),
    "tool: two kinds compared": Kind(
        lambda directory: None, "rollouts, but run/artifacts/shaped/S: shaped", ("diff", SHOW[1], "run/artifacts/shaped/S")
    ),
    "tool: a run and an artifact compared": Kind(lambda directory: None, "run: a run, but", ("diff", "run", SHOW[1])),
    "tool: nothing to drop": Kind(lambda directory: None, "every file is whole; there is nothing", ("repair", SHOW[1], "--drop-shards")),
    "tool: a shaped table without a shard": Kind(
        without("run/artifacts/shaped/S/part-00000.parquet"),
        "only rollouts can do without a shard",
        ("repair", "run/artifacts/shaped/S", "--drop-shards"),
    ),
    "tool: two ways to repair at once": Kind(
        lambda directory: None, "are two ways; choose one", ("repair", SHOW[1], "--drop-shards", "--regenerate")
    ),
    "tool: no store to clean": Kind(lambda directory: None, "model: neither a run (with run.json) nor a store", ("gc", "model")),
    "tool: a store whose runs are not named": Kind(
        lambda directory: shutil.move(directory / "run/artifacts", directory / "store"),
        "--no-other-runs: name the runs that use store",
        ("gc", "store", "--no-other-runs", "--delete"),
    ),
    "tool: no key": Kind(lambda directory: None, "--key no.pem: no such file", ("sign", SHOW[1], "--key", "no.pem")),
    "tool: a key that is none": Kind(lambda directory: None, "run.yaml: not a private key", ("sign", SHOW[1], "--key", "run.yaml")),
}  # fmt: skip

KINDS = {**PROMPTS, **CONFIGS, **REWARDS, **MODELS, **TABLES, **MANIFESTS, **RUNS, **TOOLS}
COUNT = len(KINDS)


# A project and a run that nothing is wrong with.


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.yaml, train.jsonl, heldout.jsonl, model/, and run/ with artifacts; those named R and S can be called so."""
    directory = tmp_path_factory.mktemp("sound")
    (directory / "model").mkdir()
    for name, data in {"config.json": b"{}", "model.safetensors": EMPTY_WEIGHTS, "tokenizer.json": b"{}"}.items():
        (directory / "model" / name).write_bytes(data)
    (directory / "train.jsonl").write_text(json.dumps(PROMPT) + "\n", encoding="utf-8")
    (directory / "heldout.jsonl").write_text('{"question": "2+2", "answer": "4"}\n', encoding="utf-8")
    (directory / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    save_run(_run(Store(directory / "run" / "artifacts")), directory / "run")
    return directory


@pytest.fixture
def project(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(store: Store) -> Run:
    policy = _made(store, "checkpoint", "import/1", {"iteration": 0})
    prompts = {"prompt_id": "p", "question": "1+1", "answer": "2", "prompt_text": "Q:1+1=", "metadata": None}
    train, heldout = (
        _made(store, "prompts", "prompts/1", {"name": name}, {"prompts.parquet": (Prompts, [prompts])})
        for name in ("train", "heldout")
    )
    rollouts, sampled = (_rollouts(store, policy, train, purpose) for purpose in ("train", "sampled"))
    rows = [
        {"group_id": "g0", "sample_index": n, "advantage": 0.5 - n, "weight": 1.0, "keep": True, "drop_reason": None}
        for n in (0, 1)
    ]
    shaped = _made(store, "shaped", "shape/1", {}, {"part-00000.parquet": (Shaped, rows)}, rollouts=rollouts)
    graded = {
        "prompt_id": "p",
        "mode": "sampled",
        "sample_index": 0,
        "reward": 1.0,
        "solved": True,
        "completion_tokens": 3,
        "status": "ok",
    }
    evaluation = _made(store, "evaluation", "evaluate/1", {}, {"evaluation.parquet": (Evaluation, [graded])}, policy=policy)
    step = Iteration(0, policy, Answers(sampled, None, rollouts), evaluation, shaped)
    return Run(RunConfig.model_validate(CONFIG), train, heldout, [step], missing="train 0")


def _rollouts(store: Store, policy: Artifact, prompts: Artifact, purpose: str) -> Artifact:
    row = {
        "prompt_id": "p", "prompt_token_ids": [5], "completion_token_ids": [7, 8, 9], "behavior_logprobs": [-0.5, 0.0, -2.25],
        "prompt_text": "Q:1+1=", "completion_text": "2 ✓", "answer": "2", "finish_reason": "stop", "reward": 1.0,
        "policy_id": policy.id, "policy_version": 0, "source": "self", "seed": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        "min_p": 0.0, "logprobs_mode": "processed_logprobs", "engine": "by hand", "status": "ok",
    }  # fmt: skip
    parts = {
        f"part-{number:05d}.parquet": (Rollouts, [{**row, "group_id": f"g{number}", "sample_index": sample} for sample in (0, 1)])
        for number in (0, 1)
    }
    return _made(store, "rollouts", "generate/1", {"purpose": purpose}, parts, policy=policy, prompts=prompts)


def _made(
    store: Store,
    kind: Any,
    stage: str,
    recipe: dict[str, Any],
    tables: dict[str, tuple[type[Table], list[dict[str, Any]]]] | None = None,
    **parents: Artifact,
) -> Artifact:
    request = Request(kind, stage, recipe, tuple(parent.as_parent(role) for role, parent in parents.items()))
    with store.work(request) as work:
        assert isinstance(work, Work)
        rows = 0
        for name, (table, content) in (tables or {}).items():
            types = {column: declared.dtype for column, declared in table.columns().items()}
            work.write_table(name, pl.DataFrame([{**dict.fromkeys(types), **row} for row in content], schema=types), table)
            rows += len(content)
        return work.finish({"completions": rows, "tokens": 3 * rows, "iteration": 0})


def letter(project: Path, text: str) -> str:
    """R and S in a path stand for the run's rollouts and shaped table; S beside rollouts for the held-out answers."""
    record = (
        json.loads((project / "run" / "run.json").read_text(encoding="utf-8"))["iterations"][0]
        if "/R" in text or "/S" in text
        else {}
    )
    for name, part in (("rollouts/R", "rollouts"), ("rollouts/S", "sampled"), ("shaped/S", "shaped")):
        if name in text:
            text = text.replace(name, record[part]["path"].removeprefix("artifacts/"))
    return text


def state(directory: Path) -> dict[str, str]:
    """Every file with its hash, and every link with its target."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() or path.is_symlink())
    return {
        str(path.relative_to(directory)): f"-> {path.readlink()}"
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "__pycache__" not in path.parts and path.stat().st_size < 50 << 20
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_bad_input_gets_one_clear_message_and_nothing_is_lost(
    kind: Kind, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "rollouts/R": letter(project, "rollouts/R"),
        "rollouts/S": letter(project, "rollouts/S"),
        "shaped/S": letter(project, "shaped/S"),
    }

    def real(text: str) -> str:
        for name, place in names.items():
            text = text.replace(name, place)
        return text

    monkeypatch.setattr(memory, "budget", lambda: 1_000_000)
    for name, place in names.items():  # how the breaking functions call them
        (project / "run" / "artifacts" / name).symlink_to(project / "run" / "artifacts" / place)
    kind.break_it(project)
    for name in names:
        (project / "run" / "artifacts" / name).unlink(missing_ok=True)
    before = state(project)
    status = answer([real(argument) for argument in kind.command])
    said = capsys.readouterr()
    assert said.err.startswith("rollbook: ") and said.err.count("rollbook: ") == 1, said.err
    assert "Traceback" not in said.err
    assert real(kind.said) in said.err
    assert status == kind.status
    assert len(said.err) < 3000
    assert not any(ord(character) < 32 and character != "\n" for character in said.err)
    assert state(project) == before


def test_the_project_and_the_run_are_sound(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the matrix would show nothing."""
    for command in (CHECK, ("status", "run"), ("show", "run"), ("show", letter(project, SHOW[1]), "--full")):
        assert answer(list(command)) == 0, capsys.readouterr().err
    assert "held out" in capsys.readouterr().out


def test_the_matrix_is_large_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{COUNT} kinds of bad input")
    assert COUNT >= 60
