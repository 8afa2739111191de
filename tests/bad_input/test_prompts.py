"""Kinds of bad prompts, and what becomes of the good rows beside them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.answers import working
from pipeline.config.load import load_config
from pipeline.run.order import only
from pipeline.run.processes import Processes
from pipeline.sources.order import heldout_prompts_order, import_order, train_prompts_order
from pipeline.store import read_table
from schemas import Prompts, SetAside

GOOD = {"question": "1+1", "answer": "2"}


def unfolds(project: Any) -> None:
    """One text of 100 kB that 2,000 rows share: 1 kB on disk, 400 MB as text."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000, np.int32)), pa.array(["A" * 100_000]))
    pq.write_table(pa.table({"question": texts, "answer": texts}), project.path("t.parquet"), compression="zstd")
    project.train_from("t.parquet")


def saved_dataset(project: Any, filename: str) -> None:
    """A directory like those of `datasets.save_to_disk`, that lists a file."""
    project.path("saved").mkdir()
    project.write("saved/dataset_info.json", "{}")
    project.write("saved/state.json", json.dumps({"_data_files": [{"filename": filename}], "_fingerprint": "a"}))
    project.train_from("saved")


KINDS: dict[str, tuple[Any, str]] = {
    "no such file": (lambda p: p.train_from("nowhere.jsonl"), "nowhere.jsonl: no such file or directory"),
    "empty file": (lambda p: p.write("train.jsonl", ""), "train.jsonl: no rows. A prompts file needs at least one question"),
    "broken JSON": (lambda p: p.write("train.jsonl", '{"question": \n'), "train.jsonl, line 1: not valid JSON: Expecting value"),
    "no JSON object": (lambda p: p.write("train.jsonl", "[1]\n"), 'train.jsonl, line 1: expected an object such as {"question"'),
    "a name twice in an object": (
        lambda p: p.write("train.jsonl", '{"question": "a", "question": "b", "answer": "1"}'),
        "train.jsonl, line 1: 'question' is there twice",
    ),
    "lists inside lists": (
        lambda p: p.write("train.jsonl", "[" * 2000),
        "train.jsonl, line 1: not valid JSON: too many lists or objects inside one another",
    ),
    "deep but valid": (
        lambda p: p.write("train.jsonl", '{"question": "a", "answer": "1", "x": ' + "[" * 200 + "]" * 200 + "}"),
        "train.jsonl, line 1: more than 64 lists or objects inside one another",
    ),
    "a number of 5,000 digits": (
        lambda p: p.write("train.jsonl", '{"question": "a", "answer": ' + "9" * 5000 + "}"),
        "train.jsonl, line 1: not valid JSON: Exceeds the limit (4300 digits)",
    ),
    "a line of 17 MB": (
        lambda p: p.write("train.jsonl", '{"question": "' + "a" * (17 << 20) + '"}'),
        "train.jsonl: holds more than the 1.0 MB that prompts may take on this machine",
    ),
    "not UTF-8": (
        lambda p: p.write("train.jsonl", b'{"question": "\xff", "answer": "1"}'),
        "train.jsonl, line 1: not UTF-8 text: invalid start byte at byte 14",
    ),
    "UTF-16": (lambda p: p.write("train.jsonl", json.dumps(GOOD).encode("utf-16")), "train.jsonl, line 1: not UTF-8 text"),
    "half a surrogate pair": (
        lambda p: p.write("train.jsonl", '{"question": "\\ud83d", "answer": "1"}'),
        "train.jsonl, line 1: not text: surrogates not allowed",
    ),
    "no such column": (
        lambda p: p.write("train.jsonl", [{"q": "a", "answer": "1"}]),
        "train.jsonl: no column 'question' for the question; it has q, answer. Name the right one in data.*.question",
    ),
    "empty question": (
        lambda p: p.write("train.jsonl", [{**GOOD, "question": " "}]),
        "train.jsonl, line 1: breaks the rule: question is not empty",
    ),
    "answer is null": (lambda p: p.write("train.jsonl", [{**GOOD, "answer": None}]), "train.jsonl, line 1: breaks the rule"),
    "answer is an object": (
        lambda p: p.write("train.jsonl", [GOOD, {"question": "b", "answer": {"x": 1}}]),
        "train.jsonl, line 2: column answer holds a dict with 'x': name one of them, such as answer.x",
    ),
    "the same row twice": (lambda p: p.write("train.jsonl", [GOOD, GOOD]), "train.jsonl, line 2: repeats line 1"),
    "one question, two answers": (
        lambda p: p.write("train.jsonl", [GOOD, {**GOOD, "answer": "3"}]),
        "train.jsonl, line 1: prompt_id is there twice ('prompt-4a1b21d876ae'). Its question is there with another answer",
    ),
    "an id twice": (
        lambda p: p.train_from("t.jsonl", [{**GOOD, "id": 1}, {"question": "b", "answer": "1", "id": 1}], prompt_id="id"),
        "t.jsonl, line 1: prompt_id is there twice ('1'). Give every row an id of its own",
    ),
    "an answer without the pattern": (
        lambda p: p.train_from("train.jsonl", answer_pattern="#### (.+)$"),
        "train.jsonl, line 1: column answer does not match answer_pattern '#### (.+)$'",
    ),
    "a broken pattern": (
        lambda p: p.train_from("train.jsonl", answer_pattern="(["),
        "answer_pattern: not a regular expression: unterminated character set",
    ),
    "not one good row": (
        lambda p: p.train_from("train.jsonl", [{**GOOD, "answer": ""}, {}], bad_rows="set_aside"),
        "2 of 2 rows do not fit.\n  Mend them.",
    ),
    "another kind of file": (lambda p: p.train_from("t.csv", "a,b"), "t.csv: unknown kind of file; prompts are read from .jsonl"),
    "a pointer of Git LFS": (
        lambda p: p.write("train.jsonl", "version https://git-lfs.github.com/spec/v1\n"),
        "train.jsonl: a Git LFS pointer, not the data that it stands for. Fetch it with `git lfs pull`",
    ),
    "no Parquet": (lambda p: p.train_from("t.parquet", b"PAR1"), "t.parquet: cannot be read: "),
    "Parquet with a footer of 2 GB": (
        lambda p: p.train_from("t.parquet", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"),
        "t.parquet: cannot be read: ",
    ),
    "Parquet with a column twice": (
        lambda p: p.parquet(pa.table([["a"], ["b"]], names=["question", "question"])),
        "train.parquet: column 'question' is there twice",
    ),
    "Parquet with text that is not UTF-8": (
        lambda p: p.parquet(pa.table({"question": pa.array([b"\xff\xfe"]).view(pa.string()), "answer": ["1"]})),
        "train.parquet: cannot be read: ",
    ),
    "Parquet with bytes for text": (
        lambda p: p.parquet(pa.table({"question": [b"a"], "answer": ["1"]})),
        "train.parquet, row 0: column question holds a bytes, expected text",
    ),
    "Parquet that unfolds to 400 MB": (unfolds, "t.parquet: holds more than the 1.0 MB that prompts may take on this machine"),
    "Parquet that says it is larger than memory": (
        lambda p: p.parquet(pa.table({"question": pa.nulls(100_000, pa.int8())})),
        "train.parquet: says that it expands to 25.6 MB, more than the 1.0 MB that prompts may take on this machine",
    ),
    "a dataset with files elsewhere": (
        lambda p: saved_dataset(p, "../../secret.arrow"),
        "saved: cannot be loaded as a Hugging Face dataset: state.json lists '../../secret.arrow', which lies outside",
    ),
    "a dataset without its files": (
        lambda p: saved_dataset(p, "data.arrow"),
        "saved: cannot be loaded as a Hugging Face dataset: ",
    ),
    "a dataset of the hub, without the hub": (
        lambda p: p.train_from("owner/name"),
        "owner/name: no such file or directory, and cannot be loaded as a Hugging Face dataset: ",
    ),
    "held-out questions that are trained on": (
        lambda p: p.write("heldout.jsonl", [GOOD]),
        "heldout.jsonl: 1 held-out questions are also in train.jsonl",
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_bad_prompts_are_refused(project: Any, kind: tuple[Any, str]) -> None:
    project.refuses(*kind)


def test_the_good_rows_are_kept_and_the_others_set_aside(project: Any) -> None:
    """Every row of the file is in the artifact: among the prompts, or beside them with its reasons."""
    lines = [json.dumps(GOOD), "{", json.dumps({**GOOD, "question": ""}), json.dumps({"question": "3+3", "answer": 6}), "[]"]
    project.train_from("t.jsonl", "\n".join(lines), bad_rows="set_aside")
    status, out, err = project.rollbook("check", "run.yaml")
    assert (status, err) == (0, "")
    assert "prompts    2 for training, 1 held out\nset aside  3 rows of t.jsonl: line 2, not valid JSON: " in out
    config = load_config("run.yaml")
    answers = working(config, Processes({}))
    base = only(answers.answer(import_order(config)))
    train = only(answers.answer(train_prompts_order(config, base)))
    heldout = only(answers.answer(heldout_prompts_order(config, base, train)))
    assert read_table(train, Prompts).select("question", "answer").rows() == [("1+1", "2"), ("3+3", "6")]
    kept = read_table(train, SetAside)
    assert kept["place"].to_list() == ["line 2", "line 3", "line 5"]
    assert kept["content"].to_list()[0] == "{\n"
    assert (train.summary, train.manifest.provenance.notes["set_aside"]) == ({"prompts": 2}, 3)
    assert heldout.summary == {"prompts": 1}
