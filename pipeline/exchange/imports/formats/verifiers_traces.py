"""verifiers 0.4 and prime-rl: traces.jsonl.

A line is an episode with its traces, or one trace. A trace's nodes are messages with their parent, token_ids, mask (the model
drew the token) and logprobs, which are of the tokens under the mask alone. A path from the root to a leaf is one completion:
the tool trains on each. prime-rl writes logprobs with 4 decimals, and every trace below `all` beside those it trained on
below `effective`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.exchange.imports.format import FAULTS, Format, misfit, reason
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import Values, as_answer, number, numbers, reference, rest_of, text, token_ids, truths
from pipeline.sources.chats import chat

DECIMALS = 4
REST = ("id", "env", "run", "task", "info", "metrics", "stop_condition", "is_timeout", "errors", "ok", "tools")


class VerifiersTraces(Format):
    """One completion a leaf of a trace, nodes from the root to it."""

    name = "verifiers"
    title = "traces.jsonl of verifiers 0.4 and prime-rl"
    signatures = (("traces", "task", "env"), ("nodes", "rewards", "task"))
    fields = {
        "traces[].nodes[]: token_ids": "prompt_token_ids, completion_token_ids",
        "traces[].nodes[]: mask": "action_mask",
        "traces[].nodes[]: logprobs": "behavior_logprobs",
        "traces[].nodes[]: message": "prompt_text, completion_text",
        "traces[].rewards: score, weight": "reward, reward_<name>",
        "group.id, or the task's key": "group",
        "task.data.answer": "answer",
        "traces[].calls[]: model, sampling, finish_reason": "policy_id, temperature, top_p, finish_reason",
    }
    engine = "verifiers"

    @classmethod
    def refuse(cls, files: Sequence[Path]) -> None:
        kinds = {file.resolve().parent.name: file for file in files}
        if {"all", "effective"} <= kinds.keys():
            raise UserError(
                f"{kinds['all']} and {kinds['effective']}: what prime-rl writes below `effective` is below `all` too, and would "
                "come in twice. Name the files below `effective` (what it trained on), or those below `all`"
            )

    def known(self, row: SourceRow) -> Iterable[Known | Misfit]:
        traces = row.values.get("traces", [row.values])
        if not isinstance(traces, list) or not traces:
            raise ValueError("column traces: expected a list of traces")
        for place, trace in enumerate(traces):
            where = f"{row.place}, trace {place}" if len(traces) > 1 else row.place
            try:
                yield from self._trace(row, trace, where)
            except FAULTS as error:
                yield misfit(row, reason(error))._replace(place=where)

    def _trace(self, row: SourceRow, trace: Values, where: str) -> Iterable[Known | Misfit]:
        agent = trace.get("agent") or {}
        if agent.get("trainable") is False:
            yield misfit(row, f"its agent {agent.get('name')!r} is not trainable: another model's words")._replace(place=where)
            return
        nodes = trace["nodes"]
        if not isinstance(nodes, list) or not nodes:
            raise ValueError("column nodes: the trace has none")
        parents = {node.get("parent") for node in nodes}
        leaves = [place for place in range(len(nodes)) if place not in parents]
        accepted = {link.get("node") for node in nodes for link in node.get("semantic_parents") or () if _is(link, "compaction")}
        for leaf in leaves:
            path = _path(nodes, leaf)
            if not any(nodes[place].get("sampled") for place in path):
                continue
            if (
                any(_is(link, "compaction_attempt") for link in nodes[leaf].get("semantic_parents") or ())
                and leaf not in accepted
            ):
                yield misfit(row, "an attempt to shorten the chat that was not taken")._replace(place=f"{where}, leaf {leaf}")
                continue
            yield self._leaf(row, trace, path)

    def _leaf(self, row: SourceRow, trace: Values, path: list[int]) -> Known:
        nodes = [trace["nodes"][place] for place in path]
        task = trace.get("task") or row.values.get("task") or {}
        calls = {call.get("node"): call for call in trace.get("calls") or ()}
        last: Values = next((calls[place] for place in reversed(path) if place in calls), {})
        sampling = last.get("sampling") or {}
        rewards = trace.get("rewards") or {}
        components = {name: number(part, "score") for name, part in rewards.items()}
        errors = trace.get("errors") or row.values.get("errors") or []
        finish = text(last, "finish_reason")
        return Known(
            row=row,
            **self._said(nodes),
            group=_group(row.values, trace, task),
            answer=reference((task.get("data") or {}).get("answer")),
            finish_reason=finish,
            reward=sum((number(part, "weight") or 0.0) * (components[name] or 0.0) for name, part in rewards.items())
            if rewards
            else None,
            components=components,
            temperature=number(sampling, "temperature"),
            top_p=number(sampling, "top_p"),
            policy=text(last, "model") or text((trace.get("agent") or {}).get("config") or {}, "model"),
            status="engine_error" if errors else None,
            error=str(errors[0])[:500] if errors else None,
            rest=rest_of({name: trace.get(name, row.values.get(name)) for name in REST}, set())
            | rest_of({"episode": row.values.get("id") if "traces" in row.values else None}, set()),
        )

    def _said(self, nodes: list[Values]) -> dict[str, Any]:
        """Prompt and completion, as tokens where the nodes have them."""
        turns = [chat([node["message"]], "message")[0] for node in nodes]
        first = next(place for place, node in enumerate(nodes) if node.get("sampled"))
        with_ids = [bool(node.get("token_ids")) for node in nodes]
        if not any(with_ids):
            return {"prompt": turns[:first], "completion": as_answer(turns[first:], "nodes")}
        if not all(with_ids[place] for place, node in enumerate(nodes) if node.get("sampled")):
            raise ValueError("column nodes: some of the model's messages have token ids, others have none")
        ids = [token for node in nodes for token in token_ids(node, "token_ids") or ()]
        mask = [own for node in nodes for own in truths(node, "mask") or ()]
        found = split(ids, mask, self._logprobs(nodes), column="mask")
        return {**found, "prompt": turns[:first]}

    def _logprobs(self, nodes: list[Values]) -> list[float] | None:
        """One a token that the model drew, or None if a message of its has none."""
        found: list[float] = []
        for node in nodes:
            count, said = sum(truths(node, "mask") or ()), numbers(node, "logprobs") or []
            if count and not said:
                return None
            if len(said) != count:
                raise ValueError(f"column logprobs: a node has {len(said)} for {count} tokens that the model drew")
            found += said
        if len(found) > 1 and all(round(value, DECIMALS) == value for value in found):
            self.remark(f"logprobs are rounded to {DECIMALS} decimals, as prime-rl writes them: a ratio is off by up to 0.005 %")
        return found


def _path(nodes: list[Values], leaf: int) -> list[int]:
    """Places of nodes from the root to a leaf.

    Raises:
        ValueError: a node's parent does not come before it.
    """
    path, place = [leaf], nodes[leaf].get("parent")
    while place is not None:
        if not isinstance(place, int) or not 0 <= place < path[-1]:
            raise ValueError(f"column nodes: the parent of node {path[-1]} is {place!r}, expected a node before it")
        path.append(place)
        place = nodes[place].get("parent")
    return path[::-1]


def _group(episode: Values, trace: Values, task: Values) -> tuple[str, ...]:
    """What a group's episodes have in common: the group that they were sampled in, or the run and the task."""
    group = (episode.get("group") or trace.get("group") or {}).get("id")
    run = episode.get("run") or trace.get("run") or {}
    step = (run.get("work") or {}).get("step")
    key = group or task.get("key") or (task.get("data") or {}).get("idx")
    agent = (trace.get("agent") or {}).get("name")
    return tuple(str(part) for part in (run.get("id"), step, key, agent) if part is not None)


def _is(link: Any, kind: str) -> bool:
    return isinstance(link, dict) and link.get("type") == kind


FORMAT = VerifiersTraces
