"""verifiers 0.4: traces.jsonl, an episode of one trace a line, its nodes the prompt and what follows it, drawn or not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import polars as pl

from pipeline.exchange.exports.form import FAILED, NOTHING_DRAWN, STARTS_ELSEWHERE, UNKNOWN, ForeignForm, Row, drawn, why

TASK = "RollbookTask"
TOTAL = "reward"
"""Name of the reward itself beside its parts, which weigh nothing: their weights are not in rollouts."""


def lines(group: list[Row]) -> Iterator[Row]:
    for row in group:
        task = {"type": TASK, "data": {"idx": 0, "prompt": row["prompt_text"], "answer": row["answer"]}, "key": row["prompt_id"]}
        name = f"{row['group_id']}/{row['sample_index']}"
        trace = {
            "version": 1,
            "id": name,
            "task": task,
            "agent": {"config": {}, "name": "agent", "trainable": True},
            "nodes": _nodes(row),
            "calls": [_call(row)],
            "rewards": _rewards(row),
            "metrics": {},
            "info": {},
            "is_completed": row["finish_reason"] != "length",
            "ok": True,
            "stop_condition": "max_tokens" if row["finish_reason"] == "length" else "agent_completed",
            "errors": [],
        }
        yield {
            "id": name,
            "env": {"id": "rollbook"},
            "task": task,
            "group": {"id": row["group_id"]},
            "run": {"type": "train", "id": "rollbook", "name": "rollbook", "work": _work(row)},
            "ok": True,
            "errors": [],
            "traces": [trace],
        }


def _work(row: Row) -> dict[str, Any]:
    version = row["policy_version"]
    return {"type": "train", "step": version, "policy": {"start": version, "end": version}}


def _nodes(row: Row) -> list[Row]:
    """The prompt, then each run of tokens that were drawn, or were not. The text of the whole stands in the last drawn one."""
    ids, logprobs = row["completion_token_ids"], row["behavior_logprobs"]
    prompt = row["prompt_token_ids"]
    nodes = [_node({"role": "user", "content": row["prompt_text"]}, None, prompt, own=False, logprobs=[])]
    start = 0
    for own, run in groupby(drawn(row)):
        end = start + len(list(run))
        role = "assistant" if own else "user"
        said = logprobs[start:end] if own and logprobs is not None else []
        nodes.append(_node({"role": role, "content": ""}, len(nodes) - 1, ids[start:end], own=own, logprobs=said))
        start = end
    last = max(place for place, node in enumerate(nodes) if node["sampled"])
    nodes[last]["message"]["content"] = row["completion_text"]
    return nodes


def _node(message: Row, parent: int | None, ids: list[int], *, own: bool, logprobs: list[float]) -> Row:
    node = {"semantic_parents": [], "message": message, "sampled": own, "token_ids": ids, "mask": [own] * len(ids)}
    return {**({} if parent is None else {"parent": parent}), **node, "is_content": [], "logprobs": logprobs}


def _call(row: Row) -> Row:
    sampling = {name: row[name] for name in ("temperature", "top_p") if row[name] is not None}
    model = None if row["policy_id"] == UNKNOWN else row["policy_id"]
    last = len(list(groupby(drawn(row))))
    last -= not drawn(row)[-1]
    return {"node": last, "model": model, "sampling": sampling, "finish_reason": row["finish_reason"]}


def _rewards(row: Row) -> dict[str, dict[str, float]]:
    if row["reward"] is None:
        return {}
    parts = {name.removeprefix("reward_"): value for name, value in row.items() if name.startswith("reward_")}
    told = {name: {"score": value, "weight": 0.0} for name, value in parts.items() if value is not None and name != TOTAL}
    return {TOTAL: {"score": row["reward"], "weight": 1.0}, **told}


FORM = ForeignForm(
    name="verifiers",
    title="traces of verifiers 0.4",
    file="traces.jsonl",
    holds=frozenset(
        {"behavior_logprobs", "action_mask", "reward", "reward_*", "answer", "finish_reason", "policy_id", "temperature", "top_p"}
    ),
    tokens=True,
    groups="texts of single turns: the whole stands in the last that was drawn",
    refuses=pl.coalesce(
        why(FAILED, "they failed"),
        why(NOTHING_DRAWN | STARTS_ELSEWHERE, "they do not begin with a token that was drawn, which the mask could not say"),
    ),
    lines=lines,
)
