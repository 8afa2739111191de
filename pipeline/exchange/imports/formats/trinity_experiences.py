"""Trinity-RFT: experiences in JSONL, or what of its SQL tables can be read without unpickling.

Fields of JSONL (0.6): eid (batch, task, run, step), prompt_text and response_text, or messages; reward, metrics, info. It has
neither token ids nor logprobs. A SQL table has task_id, run_id, reward and model_version, and in experience_bytes tensors in
safetensors' form behind texts that are pickled: the tensors are read, the texts are not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import Values, as_answer, is_missing, number, rest_of, text
from pipeline.sources.chats import chat

MAGIC, HEAD = b"TRXP", struct.Struct("<4sBQQ")
"""Before version, bytes of the pickled part, and bytes of the tensors."""
BYTES = "experience_bytes"
USED = {"prompt_text", "response_text", "messages", "reward", BYTES}


class Trinity(Format):
    """One experience a row."""

    name = "trinity"
    title = "Trinity-RFT's experiences (JSONL, or a SQLite file)"
    signatures = (
        ("eid", "reward", "type"),
        ("task_id", "run_id", "reward", "model_version", "_table"),
        ("reward", BYTES, "_table"),
    )
    fields = {
        "prompt_text, response_text, messages": "prompt_text, completion_text",
        "eid.batch, eid.task; task_id": "group",
        "reward": "reward",
        "experience_bytes: tokens, logprobs, action_mask": "the same, by safetensors",
    }
    engine = "Trinity-RFT"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        said = _of_bytes(values) if BYTES in values else _of_texts(values)
        yield Known(
            row=row,
            **said,
            reward=number(values, "reward"),
            group=_group(values),
            rest=rest_of(values, USED),
        )


def _group(values: Values) -> tuple[str, ...]:
    """Runs of one task of one batch. SQL has no batch; there it is the version of the model."""
    eid = values.get("eid")
    if isinstance(eid, dict):
        return (f"batch {eid.get('batch')}", f"task {eid.get('task')}")
    return (str(values.get("_table")), f"task {values.get('task_id')}", f"version {values.get('model_version')}")


def _of_texts(values: Values) -> dict[str, Any]:
    if not is_missing(values.get("response_text")):
        return {"prompt": text(values, "prompt_text"), "prompt_is_whole": True, "completion": text(values, "response_text")}
    if not isinstance(values.get("messages"), list):
        raise ValueError("columns response_text and messages: both are null or missing")
    turns = chat(values["messages"], "messages")
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), None)
    if first is None:
        raise ValueError("column messages: no message is the assistant's")
    return {"prompt": turns[:first], "completion": as_answer(turns[first:], "messages")}


def _of_bytes(values: Values) -> dict[str, Any]:
    """Tokens of an experience's tensors.

    Raises:
        ValueError: they are pickled, as versions before 0.5 have it, or there are none.
    """
    if not is_missing(values.get("response")) and not is_missing(values.get("prompt")):
        return {"prompt": text(values, "prompt"), "prompt_is_whole": True, "completion": text(values, "response")}
    data = values[BYTES]
    if not isinstance(data, bytes) or not data.startswith(MAGIC) or len(data) < HEAD.size:
        raise ValueError(
            f"column {BYTES}: pickled, and nothing is ever unpickled. Write the experiences as JSONL (storage_type: file)"
        )
    _, _, pickled, length = HEAD.unpack_from(data)
    tensors = _tensors(data[HEAD.size + pickled : HEAD.size + pickled + length])
    ids, logprobs, mask = (tensors.get(f"0:{name}") for name in ("tokens", "logprobs", "action_mask"))
    behind = len(mask) if mask is not None else len(logprobs) if logprobs is not None else None
    if not ids or not behind:
        raise ValueError(f"column {BYTES}: has neither action_mask nor logprobs, so it is not said where the completion starts")
    drawn = [bool(item) for item in mask] if mask is not None else [True] * behind
    return split(ids, [False] * (len(ids) - behind) + drawn, logprobs, column=BYTES)


def _tensors(data: bytes) -> dict[str, Any]:
    from safetensors.numpy import load

    try:
        return {name: tensor.tolist() for name, tensor in load(data).items()}
    except Exception as error:  # safetensors raises an error of its own for each fault
        raise ValueError(f"column {BYTES}: its tensors cannot be read: {error}") from None


FORMAT = Trinity
