"""ART (openpipe-art): trajectories as its Parquet writer keeps them.

Columns (0.5): group_index, trajectory_index, reward, trajectory_json, and messages, a shorter view. trajectory_json has
messages_and_choices, in which what the model wrote is a server's choice with its message, logprobs, and token_ids where the
server gave them; the view has neither. A reward of 0 is left out of the JSON.

Before 0.5 it wrote JSONL, a group a line: {"trajectories": [...]}, of trajectories that are like trajectory_json.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import FAULTS, Format, misfit, reason
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import Values, as_answer, json_value, number, numbers, rest_of, text, token_ids
from pipeline.sources.chats import chat

USED = {
    "trajectory_json",
    "messages",
    "messages_and_choices",
    "additional_histories",
    "reward",
    "group_index",
    "metrics",
    "metadata",
}


class ART(Format):
    """A trajectory a row; further histories of one are completions too, with its reward."""

    name = "art"
    title = "ART's trajectories (Parquet, or JSONL of groups)"
    signatures = (
        ("trajectory_json", "group_index"),
        ("trajectory_index", "group_index", "messages", "reward"),
        ("trajectories",),
    )
    fields = {
        "trajectory_json: messages_and_choices": "prompt_text, completion_text",
        "choices: token_ids, prompt_token_ids, logprobs": "completion_token_ids, prompt_token_ids, behavior_logprobs",
        "reward": "reward",
        "group_index; <line>": "group",
    }
    engine = "ART"

    def known(self, row: SourceRow) -> Iterable[Known | Misfit]:
        if "trajectories" not in row.values:
            yield from self._trajectory(row, row.values, (row.file, f"group {row.values['group_index']}"))
            return
        for place, one in enumerate(row.values["trajectories"]):
            values = {**one, "trajectory_json": one, "trajectory_index": place}
            try:
                yield from self._trajectory(row, values, (f"{row.file} {row.number}",))
            except FAULTS as error:
                yield misfit(row, reason(error))._replace(place=f"{row.place}, trajectory {place}")

    def _trajectory(self, row: SourceRow, values: Values, group: tuple[str, ...]) -> Iterable[Known]:
        trajectory = json_value(values, "trajectory_json") or {}
        told = {name: found for name in ("metrics", "metadata") if (found := json_value(values, name))}
        histories = [trajectory, *(trajectory.get("additional_histories") or ())]
        for history in histories:
            items = history.get("messages_and_choices")
            yield Known(
                row=row,
                **(_of_choices(items) if isinstance(items, list) else _of_messages(values)),
                reward=number(values, "reward"),
                group=group,
                rest=rest_of(values, USED) | told,
            )


def _of_messages(values: Values) -> dict[str, Any]:
    """An earlier version's rows: messages, of which those marked are the model's."""
    items = values["messages"]
    turns = chat([{key: item[key] for key in item if key != "trainable"} for item in items], "messages")
    first = next((place for place, item in enumerate(items) if item.get("trainable")), None)
    if first is None:
        raise ValueError("column messages: none is marked as the model's")
    return {"prompt": turns[:first], "completion": as_answer(turns[first:], "messages")}


def _of_choices(items: list[Any]) -> dict[str, Any]:
    is_choice = [isinstance(item, dict) and isinstance(item.get("message"), dict) for item in items]
    turns = chat([item["message"] if own else item for item, own in zip(items, is_choice, strict=True)], "trajectory_json")
    if True not in is_choice:
        raise ValueError("column trajectory_json: no choice of a model in it")
    first = is_choice.index(True)
    choices = [item for item, own in zip(items, is_choice, strict=True) if own]
    said: dict[str, Any] = {"prompt": turns[:first], "finish_reason": text(choices[-1], "finish_reason")}
    if all(choice.get("token_ids") and choice.get("prompt_token_ids") for choice in choices) and len(choices) > 1:
        return said | _of_tokens(choices)
    said["completion"] = as_answer(turns[first:], "trajectory_json")
    if len(turns) > first + 1:
        return said  # tokens of what came between are not known, so the template writes it all
    only = choices[0]
    logprobs, texts = _logprobs(only)
    ids = token_ids(only, "token_ids")
    given = token_ids(only, "prompt_token_ids")
    if isinstance(said["completion"], list) and ids:
        said.pop("completion")
    return said | {
        "prompt_tokens": given or None,
        "completion_tokens": ids or None,
        "logprobs": logprobs,
        "logprob_texts": None if ids else texts,
    }


def _of_tokens(choices: list[Values]) -> dict[str, Any]:
    """Turns of which each was given all tokens before it.

    Raises:
        ValueError: a turn was given others.
    """
    ids: list[int] = []
    drawn: list[bool] = []
    logprobs: list[float] | None = []
    for place, choice in enumerate(choices):
        given, own = token_ids(choice, "prompt_token_ids") or [], token_ids(choice, "token_ids") or []
        if given[: len(ids)] != ids:
            raise ValueError(f"column trajectory_json: choice {place} was not given the tokens of the turns before it")
        said, _ = _logprobs(choice)
        if logprobs is not None:
            logprobs = [*logprobs, *[0.0] * (len(given) - len(ids)), *said] if said and len(said) == len(own) else None
        drawn += [False] * (len(given) - len(ids)) + [True] * len(own)
        ids = given + own
    return split(ids, drawn, logprobs, column="trajectory_json")


def _logprobs(choice: Values) -> tuple[list[float] | None, list[str] | None]:
    found = (choice.get("logprobs") or {}).get("content") or []
    if not found:
        return None, None
    return numbers({"logprobs": [token.get("logprob") for token in found]}, "logprobs"), [str(t.get("token")) for t in found]


FORMAT = ART
