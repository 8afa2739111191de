"""Kinds of bad Parquet files, manifests and run records, and of orders that the tools for artifacts cannot follow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

Kinds = dict[str, tuple[Any, ...]]
A, B, SHAPED = "run/artifacts/rollouts/" + "a" * 16, "run/artifacts/rollouts/" + "b" * 16, "run/artifacts/shaped/" + "c" * 16
MANIFEST = f"{A}/manifest.json"
SHOW, DIFF = ("show", A), ("diff", A, B)
STATUS, REPORT = ("status", "run"), ("report", "run")
PATHS = {
    "that climbs out": "../../../secret",
    "from the root": "/etc/passwd",
    "that climbs out half way": "a/../../../secret",
    "with a backslash": "..\\secret",
    "with an escape sequence": "\x1b[2Jpart",
    "that is empty": "",
}


def flip(part: Path, place: int) -> None:
    data = bytearray(part.read_bytes())
    data[place] ^= 0xFF
    part.write_bytes(bytes(data))


def many_rewards(table: pa.Table) -> pa.Table:
    for number in range(1001):
        table = table.append_column(f"reward_{number}", table["reward"])
    return table


TABLES: Kinds = {
    "not Parquet": (
        lambda p: p.shard(lambda part: part.write_bytes(b"PAR1" * 9)),
        "part-00000.parquet: not a readable Parquet",
        SHOW,
    ),
    "encrypted": (
        lambda p: p.shard(lambda part: part.write_bytes(b"PARE" + bytes(40) + b"PARE")),
        "not a readable Parquet",
        SHOW,
    ),
    "cut off": (lambda p: p.shard(lambda part: os.truncate(part, 100), listed=False), "100 bytes, the manifest says ", SHOW),
    "a bit flipped": (
        lambda p: p.shard(lambda part: flip(part, 200), listed=False),
        "was changed after it was written (sha256",
        DIFF,
    ),
    "pages that are garbage": (lambda p: p.shard(lambda part: flip(part, 40)), f"{A}: a table cannot be read: ", SHOW),
    "a column is missing": (
        lambda p: p.columns(lambda t: t.drop_columns(["policy_id"])),
        "column policy_id (string) is missing",
        SHOW,
    ),
    "a column too many": (
        lambda p: p.columns(lambda t: t.append_column("x", t["seed"])),
        "part-00000.parquet: column x is not part of table rollouts version 1",
        SHOW,
    ),
    "a column twice": (lambda p: p.columns(lambda t: t.append_column("seed", t["seed"])), "column seed is there 2 times", SHOW),
    "a column of another type": (
        lambda p: p.columns(lambda t: t.set_column(0, "group_id", t["seed"])),
        "column group_id is int64, expected string",
        SHOW,
    ),
    "rewards as text": (
        lambda p: p.columns(lambda t: t.append_column("reward_x", t["status"])),
        "column reward_x is string, expected double",
        SHOW,
    ),
    "1,001 columns of rewards": (lambda p: p.columns(many_rewards), " columns, expected at most 1,0", SHOW),
    "a row group larger than memory": (
        lambda p: p.columns(lambda t: pa.concat_tables([t] * 8000)),
        "part-00000.parquet: row group 0 says that it expands to ",
        SHOW,
    ),
    "of a later version": (
        lambda p: p.manifest("content", "files", 0, "table", value="rollouts/9"),
        "part-00000.parquet: table rollouts version 9; this version of rollbook reads 1",
        SHOW,
    ),
    "rows with one key": (
        lambda p: p.columns(lambda t: pa.concat_tables([t, t])),
        "table rollouts has rows with the same group_id + sample_index, so they cannot be matched",
        DIFF,
    ),
}

MANIFESTS: Kinds = {
    "absent": (
        lambda p: p.path(MANIFEST).unlink(),
        f"{A}: neither an artifact (a directory with manifest.json), nor a run",
        SHOW,
    ),
    "empty": (lambda p: p.write(MANIFEST, ""), "manifest.json: not a valid manifest: Expecting value", SHOW),
    "not UTF-8": (lambda p: p.write(MANIFEST, b"\xff"), "manifest.json: not a valid manifest: 'utf-8' codec", SHOW),
    "a list": (lambda p: p.write(MANIFEST, "[]"), "manifest.json: not a valid manifest: ", SHOW),
    "lists inside lists": (lambda p: p.write(MANIFEST, "[" * 100_000), "manifest.json: not a valid manifest: ", SHOW),
    "257 MiB": (
        lambda p: os.truncate(p.path(MANIFEST), 257 << 20),
        "manifest.json: not a manifest: it has 269,484,032 bytes",
        SHOW,
    ),
    "of a later format": (
        lambda p: p.manifest("format", value="rollbook/9"),
        "format 'rollbook/9'; this version of rollbook",
        SHOW,
    ),
    "of another id": (
        lambda p: p.write(MANIFEST, p.path(MANIFEST).read_text().replace('"tokens": 12', '"tokens": 13')),
        "manifest.json: its content hashes to another id than it states",
        SHOW,
    ),
    "an unknown kind": (lambda p: p.manifest("content", "kind", value="secrets"), "content.kind: Input should be", SHOW),
    "an unknown field": (lambda p: p.manifest("content", "x", value=1), "content.x: Extra inputs are not permitted", SHOW),
    "NaN": (
        lambda p: p.manifest("content", "summary", "tokens", value=float("nan")),
        "manifest.json: its content hashes to another id",
        SHOW,
    ),
    "half a surrogate pair": (
        lambda p: p.manifest("content", "key", value="\ud800"),
        "manifest.json: not a valid manifest: ",
        SHOW,
    ),
    "text for a figure": (
        lambda p: p.manifest("content", "summary", "tokens", value="many"),
        "summary.tokens is no number",
        SHOW,
    ),
    "no time of day": (lambda p: p.manifest("provenance", "created", value="now"), "provenance.created: Invalid isoformat", SHOW),
    "a negative size": (
        lambda p: p.manifest("content", "files", 0, "bytes", value=-1),
        "content.files.0.bytes: Input should",
        SHOW,
    ),
    **{
        f"a path {name}": (
            lambda p, path=path: p.manifest("content", "files", 0, "path", value=path),
            f"manifest.json: not a valid manifest: content.files.0.path: lists {path!r}, which lies outside the artifact",
            SHOW,
        )
        for name, path in PATHS.items()
    },
    "a file that is missing": (
        lambda p: p.path(f"{A}/part-00001.parquet").unlink(),
        "part-00001.parquet: missing, the manifest",
        SHOW,
    ),
    "a link in place of a file": (
        lambda p: p.link(f"{A}/part-00001.parquet", "/etc/hostname"),
        "part-00001.parquet: a link to /etc/hostname; artifacts hold files only",
        SHOW,
    ),
    "a file that is not listed": (
        lambda p: p.write(f"{A}/pytorch_model.bin", b"\x80"),
        "pytorch_model.bin: not in the manifest, and a model's library could read it. Take it out of there",
        DIFF,
    ),
}

RUNS: Kinds = {
    "no run there": (lambda p: None, "model: no run there (it has no run.json)", ("status", "model")),
    "broken record": (lambda p: p.write("run/run.json", "{"), "run/run.json: not a valid run record: ", STATUS),
    "deep record": (lambda p: p.write("run/run.json", "[" * 100_000), "run/run.json: not a valid run record: ", STATUS),
    "record that is a list": (lambda p: p.write("run/run.json", "[]"), "run/run.json: not a valid run record: ", STATUS),
    "record of a later format": (
        lambda p: p.record("format", value="rollbook-run/9"),
        "run.json: format 'rollbook-run/9'",
        STATUS,
    ),
    "an artifact that is gone": (
        lambda p: shutil.rmtree(p.path("run/artifacts/shaped")),
        f"{SHAPED}: not a finished artifact (it has no manifest.json)",
        REPORT,
    ),
    "another artifact in its place": (
        lambda p: p.record("iterations", 0, "rollouts", "id", value="0" * 64),
        "the run recorded 0000000000000000",
        REPORT,
    ),
    "an unknown setting": (lambda p: p.record("config", "x", value=1), "run/run.json: not a valid run record: ", STATUS),
    "iterations that are text": (lambda p: p.record("iterations", value="all"), "run/run.json: not a valid run record: ", STATUS),
    "a place that is a number": (
        lambda p: p.record("iterations", 0, "policy", "path", value=7),
        "run/run.json: not a valid run record: ",
        STATUS,
    ),
}

ORDERS: Kinds = {
    "nothing at the path": (lambda p: None, "nowhere: neither an artifact (a directory with manifest.json)", ("show", "nowhere")),
    "a reward that is no comparison": (
        lambda p: None,
        "--reward big: expected a comparison such as '>0.5'",
        (*SHOW, "--reward", "big"),
    ),
    "an unknown status": (lambda p: None, "--status fine: expected one of ok, truncated", (*SHOW, "--status", "fine")),
    "an unknown order": (lambda p: None, "--sort age: expected one of reward, advantage", (*SHOW, "--sort", "age")),
    "an unknown table": (lambda p: None, "--table x: expected one of prompts", (*SHOW, "--table", "x")),
    "an unknown set": (lambda p: None, "--of best: expected one of rollouts, sampled, greedy", ("show", "run", "--of", "best")),
    "a filter of another table": (lambda p: None, "--reward: for completions only", ("show", SHAPED, "--reward", "1")),
    "two kinds compared": (lambda p: None, f"{A}: rollouts, but {SHAPED}: shaped", ("diff", A, SHAPED)),
    "a run and an artifact compared": (lambda p: None, f"run: a run, but {A}: a artifact", ("diff", "run", A)),
    "nothing to drop": (lambda p: None, "every file is whole; there is nothing to drop", ("repair", A, "--drop-shards")),
    "a shaped table without a shard": (
        lambda p: p.path(f"{SHAPED}/part-00000.parquet").unlink(),
        "only rollouts can do without a shard, this is a shaped. Try --regenerate",
        ("repair", SHAPED, "--drop-shards"),
    ),
    "two ways to repair": (lambda p: None, "are two ways; choose one", ("repair", A, "--drop-shards", "--regenerate")),
    "no store to clean": (lambda p: None, "model: neither a run (with run.json) nor a store", ("gc", "model")),
    "a store whose runs are not named": (
        lambda p: shutil.move(p.path("run/artifacts"), p.path("store")),
        "--no-other-runs: name the runs that use store with --run",
        ("gc", "store", "--no-other-runs", "--delete"),
    ),
    "no key": (lambda p: None, "--key no.pem: no such file", ("sign", A, "--key", "no.pem")),
    "a key that is none": (lambda p: None, "--key run.yaml: not a private key", ("sign", A, "--key", "run.yaml")),
}


@pytest.mark.parametrize("kind", TABLES.values(), ids=TABLES)
def test_bad_tables_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)


@pytest.mark.parametrize("kind", MANIFESTS.values(), ids=MANIFESTS)
def test_bad_manifests_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)


@pytest.mark.parametrize("kind", RUNS.values(), ids=RUNS)
def test_bad_runs_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)


@pytest.mark.parametrize("kind", ORDERS.values(), ids=ORDERS)
def test_orders_that_make_no_sense_are_refused(project: Any, kind: tuple[Any, ...]) -> None:
    project.refuses(*kind)


def test_nothing_is_said_against_what_is_sound(project: Any) -> None:
    """Else the matrix would show nothing."""
    for command in (("check", "run.yaml"), STATUS, REPORT, ("show", "run"), (*SHOW, "--full"), ("repair", A), ("gc", "run")):
        status, _, err = project.rollbook(*command)
        assert (status, err) == (0, ""), command


def test_the_matrix_is_large(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [item for item in request.session.items if item.path.parent == request.path.parent and "kind" in item.fixturenames]
    with capsys.disabled():
        print(f"\n{len(kinds)} kinds of bad input")
    assert len(kinds) >= 60 or len(request.session.items) < 60
