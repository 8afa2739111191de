"""Files that are no lines and no Parquet: archives of evaluations, dumps of torch, tables of SQLite. Nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import save

from pipeline.common.errors import DataError
from pipeline.exchange.imports.eval_logs import ZSTD
from pipeline.store import Artifact

Bring = Callable[..., Artifact]
FIXTURES = Path(__file__).parent / "fixtures"


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return pl.concat([pl.read_parquet(path) for path in artifact.tables("rollouts")]).to_dicts()


def _eval_archive(path: Path, members: dict[str, Any]) -> None:
    """A zip whose members zstd packed, which Python's zipfile cannot write before 3.14: packed first, and then marked as such."""
    sizes = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, value in members.items():
            text = json.dumps(value).encode()
            sink = pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(text)
            archive.writestr(name, sink.getvalue().to_pybytes())
            sizes[name] = len(text)
    data = bytearray(path.read_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        length = struct.unpack_from("<H", data, place + 28)[0]
        name = data[place + 46 : place + 46 + length].decode()
        local = struct.unpack_from("<I", data, place + 42)[0]
        struct.pack_into("<H", data, place + 10, ZSTD)
        struct.pack_into("<I", data, place + 24, sizes[name])
        struct.pack_into("<H", data, local + 8, ZSTD)
        struct.pack_into("<I", data, local + 22, sizes[name])
        place = data.find(b"PK\x01\x02", place + 46)
    path.write_bytes(data)


def test_an_eval_archive_says_what_its_dump_says(bring: Bring, tmp_path: Path) -> None:
    log = json.loads((FIXTURES / "inspect_ai" / "sums.json").read_text(encoding="utf-8"))
    members = {f"samples/{sample['id']}_epoch_{sample['epoch']}.json": sample for sample in log["samples"]}
    members["header.json"] = {name: value for name, value in log.items() if name != "samples"}
    _eval_archive(tmp_path / "sums.eval", members)
    dumped, archived = bring(FIXTURES / "inspect_ai" / "sums.json"), bring(tmp_path / "sums.eval")
    assert archived.recipe["format"] == "inspect-ai"
    columns = ["prompt_text", "completion_text", "reward", "reward_brevity", "behavior_logprobs", "answer", "policy_id"]
    assert [[row[name] for name in columns] for row in rows_of(archived)] == [
        [row[name] for name in columns] for row in rows_of(dumped)
    ]


def test_json_that_is_no_log_is_refused_and_a_list_of_rows_is_read(bring: Bring, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="expected a list of rows, or what `inspect log dump` prints"):
        bring(tmp_path / "x.json", form="plain")
    (tmp_path / "y.json").write_text('[{"prompt": "1+1=", "completion": "2", "reward": 1}]', encoding="utf-8")
    assert [row["completion_text"] for row in rows_of(bring(tmp_path / "y.json", form="plain"))] == ["2"]


def _sample(**more: Any) -> dict[str, Any]:
    return {
        "group_index": 0,
        "index": 0,
        "prompt": "1+1=",
        "tokens": [31, 20, 40, 41, 42],
        "response": "abc",
        "response_length": 3,
        "label": "2",
        "reward": 1.0,
        "loss_mask": [1, 0, 1],
        "rollout_log_probs": [-0.5, -0.25, -1.0],
        "status": "completed",
        "metadata": {"level": 1},
        **more,
    }


def test_slime_dumps_have_masks_and_logprobs_of_the_response(bring: Bring, tmp_path: Path) -> None:
    samples = [
        _sample(),
        _sample(reward={"score": 0.5, "format": 1.0}, status="truncated", loss_mask=None),
        _sample(group_index=1, status="aborted", rollout_log_probs=None),
    ]
    torch.save({"rollout_id": 7, "samples": samples}, tmp_path / "7.pt")
    artifact = bring(tmp_path / "7.pt", model=None)
    first, second, third = rows_of(artifact)
    assert artifact.recipe["format"] == "slime" and artifact.summary["groups"] == 2
    assert (first["prompt_token_ids"], first["completion_token_ids"]) == ([31, 20], [40, 41, 42])
    assert first["action_mask"] == [True, False, True] and first["behavior_logprobs"] == [-0.5, 0.0, -1.0]
    assert (first["reward"], first["answer"], first["finish_reason"]) == (1.0, "2", "stop")
    assert (second["reward"], second["reward_format"], second["status"]) == (0.5, 1.0, "truncated")
    assert (third["status"], third["behavior_logprobs"]) == ("engine_error", None)


class _Own:
    """Of a class that no reader knows."""


def test_a_dump_with_classes_in_it_is_refused_and_nothing_of_it_runs(bring: Bring, tmp_path: Path) -> None:
    torch.save({"samples": [_sample(metadata=_Own())]}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"nothing else is ever unpickled(.|\n)*as JSON lines"):
        bring(tmp_path / "x.pt")


def _experience(ids: list[int], logprobs: list[float], mask: list[bool] | None) -> bytes:
    """As Trinity-RFT 0.6 serializes one: what is pickled, here a text that no reader may load, and its tensors."""
    tensors = {"0:tokens": np.array(ids), "0:logprobs": np.array(logprobs, np.float32)}
    if mask is not None:
        tensors["0:action_mask"] = np.array(mask)
    pickled, packed = b"not a pickle", save(tensors)
    return struct.pack("<4sBQQ", b"TRXP", 1, len(pickled), len(packed)) + pickled + packed


def test_trinitys_tables_give_their_tensors_and_no_pickles(bring: Bring, tmp_path: Path) -> None:
    opened = sqlite3.connect(tmp_path / "buffer.db")
    opened.execute(
        "CREATE TABLE exp (id INTEGER PRIMARY KEY, task_id TEXT, run_id INTEGER, msg_id TEXT, model_version INTEGER, reward REAL)"
    )
    opened.execute("CREATE TABLE exp_blob (id INTEGER PRIMARY KEY, experience_bytes BLOB)")
    blobs = [
        _experience([31, 20, 40, 41], [-0.5, -1.5], [True, True]),
        _experience([31, 20, 40, 50, 41], [-0.5, 0.0, -1.5], [True, False, True]),
        _experience([31, 20, 42], [-2.0], None),
        pickle.dumps({"an": "experience of an earlier version"}),
    ]
    for number, blob in enumerate(blobs):
        opened.execute("INSERT INTO exp VALUES (?, ?, ?, ?, 3, ?)", (number, str(number // 2), number % 2, "m", float(number)))
        opened.execute("INSERT INTO exp_blob VALUES (?, ?)", (number, blob))
    opened.commit()
    opened.close()
    artifact = bring(tmp_path / "buffer.db")
    rows = rows_of(artifact)
    assert artifact.summary["groups"] == 2
    assert [row["completion_token_ids"] for row in rows] == [[40, 41], [40, 50, 41], [42]]
    assert [row["action_mask"] for row in rows] == [None, [True, False, True], None]
    assert [row["behavior_logprobs"] for row in rows] == [[-0.5, -1.5], [-0.5, 0.0, -1.5], [-2.0]]
    assert [row["reward"] for row in rows] == [0.0, 1.0, 2.0]
    (aside,) = pl.read_parquet(artifact.tables("setaside"))["why"]
    assert "pickled, and nothing is ever unpickled" in aside


def test_a_database_without_rewards_is_refused_by_name(bring: Bring, tmp_path: Path) -> None:
    opened = sqlite3.connect(tmp_path / "x.db")
    opened.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, raw_task TEXT)")
    opened.commit()
    opened.close()
    with pytest.raises(DataError, match="no table with a column reward; it has tasks"):
        bring(tmp_path / "x.db", form="trinity")
    (tmp_path / "y.db").write_text("no database", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        bring(tmp_path / "y.db", form="trinity")
