"""Rows of texts and numbers, many at once: what `RowMaker` makes of each, column by column.

A batch in which anything is out of the ordinary (a value of another type, token ids, a chat, a prompt that does not fit) is left
to `RowMaker`, which says of every row what it is or what is wrong with it. Where this room makes rows, they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.common.spelled import spelled
from pipeline.exchange.imports.format import Format, SaidColumns, as_json
from pipeline.exchange.imports.known import SourceRow
from pipeline.exchange.imports.rows import COMPONENTS, GROUP, ORDER, SCHEMA, UNGRADED, UNKNOWN, WIDTHS, Declared, hashed, key_of
from pipeline.exchange.imports.tokens import Ids, SourceTokenizer, ids_of

TEXTS = ("finish_reason", "logprobs_mode", "policy", "engine", "status", "error")
SPELLED = ("answer", "group", "prompt_id")
"""Texts that are often numbers in a file."""
NUMBERS = ("reward", "temperature", "top_p", "min_p")
WHOLE = ("seed", "top_k", "policy_version")
NOT_TEXT = ("prompt_tokens", "completion_tokens", "tokens", "logprobs", "action_mask")
_Told = tuple[tuple[str, ...], str, int, str, int]
"""What the format says of a row's group, its policy, that one's version, its prompt's id, and which prompt it is."""
FAILED = ("reward_error", "engine_error")


class SimpleBatch(NamedTuple):
    """Rows of `SCHEMA` without the numbers of their groups and their own."""

    frame: pl.DataFrame
    keys: list[bytes]
    """What tells the group of each row."""
    components: tuple[str, ...]


class _OutOfTheOrdinary(Exception):
    """Something that only `RowMaker` can say."""


class SimpleRows:
    """Makes rows of batches that are simple."""

    def __init__(self, form: Format, tokens: SourceTokenizer, declared: Declared) -> None:
        self._form, self._tokens, self._declared = form, tokens, declared

    def of(self, rows: Sequence[SourceRow]) -> SimpleBatch | None:
        """The rows of a batch, or None where one of them is not simple."""
        said = self._form.columns(rows)
        if said is None:
            return None
        try:
            return self._batch(rows, said)
        except (_OutOfTheOrdinary, ValueError):
            return None

    def _batch(self, rows: Sequence[SourceRow], said: SaidColumns) -> SimpleBatch:
        count, known = len(rows), said.values
        if any(set(map(type, known.get(name, ()))) - {type(None)} for name in NOT_TEXT):
            raise _OutOfTheOrdinary
        texts = {name: _of_types(known.get(name) or [None] * count, str) for name in TEXTS}
        names = {name: _spelled(known.get(name) or [None] * count) for name in SPELLED}
        numbers = {name: _floats(known.get(name) or [None] * count) for name in NUMBERS}
        whole = {name: _whole(name, known.get(name) or [None] * count) for name in WHOLE}
        components = {name: _floats(values) for name, values in said.components.items()}
        prompts, place = _places(_needed(known, "prompt"))
        made = self._tokens.prompts(rows[0], prompts)
        answers, ids = self._tokens.answers(_needed(known, "completion"), texts["finish_reason"])
        ids_of_prompts = _column(ids_of([tokens for _, tokens in made]), "prompt_token_ids")
        own = [hashed(prompt or text) for prompt, (text, _) in zip(prompts, made, strict=True)]
        prompt_ids = [name or own[at] for name, at in zip(names["prompt_id"], place, strict=True)]
        policies = [name or self._declared.policy or UNKNOWN for name in texts["policy"]]
        versions = [version or 0 for version in whole["policy_version"]]
        groups = [() if name is None else (name,) for name in names["group"]]
        keys = _keys(list(zip(groups, policies, versions, prompt_ids, place, strict=True)), [tokens for _, tokens in made])
        columns: dict[str, Any] = {
            "prompt_id": prompt_ids,
            "prompt_token_ids": ids_of_prompts.gather(place),
            "completion_token_ids": _column(ids, "completion_token_ids"),
            "prompt_text": pl.Series([text for text, _ in made], dtype=pl.String).gather(place),
            "completion_text": answers,
            "answer": names["answer"],
            "finish_reason": texts["finish_reason"],
            "policy_id": policies,
            "source": [self._form.source] * count,
            **{name: self._or_declared(name, numbers[name]) for name in ("temperature", "top_p", "min_p")},
            "top_k": self._or_declared("top_k", whole["top_k"]),
            "logprobs_mode": [UNKNOWN] * count,
            "engine": [name or self._form.engine for name in texts["engine"]],
            "seed": whole["seed"],
            "policy_version": versions,
            **self._graded(numbers["reward"], texts, components),
            "file": [row.file for row in rows],
            "number": [row.number for row in rows],
            "tokens": ["retokenized"] * count,
            "rest": None if said.rest is None else [as_json(rest) for rest in said.rest],
            COMPONENTS: _parts(components, count),
        }
        frame = pl.DataFrame({name: _series(name, columns.get(name), count) for name in SCHEMA if name not in (GROUP, ORDER)})
        return SimpleBatch(frame, keys, tuple(components))

    def _or_declared(self, name: str, values: list[Any]) -> list[Any]:
        declared = getattr(self._declared, name)
        return values if declared is None else [declared if value is None else value for value in values]

    def _graded(
        self, rewards: list[float | None], texts: dict[str, list[str | None]], components: dict[str, list[float | None]]
    ) -> dict[str, list[Any]]:
        """Reward, status and error, of rows that did not fail and whose parts of the reward need no sum."""
        if any(status in FAILED for status in set(texts["status"])) or (components and None in rewards):
            raise _OutOfTheOrdinary
        if self._declared.reward is not None:
            rewards = [self._declared.reward if value is None else value for value in rewards]
        whole = [
            status or ("truncated" if why == "length" else "ok")
            for status, why in zip(texts["status"], texts["finish_reason"], strict=True)
        ]
        if None not in rewards:
            return {"reward": rewards, "status": whole, "error": texts["error"]}
        return {
            "reward": rewards,
            "status": ["reward_error" if value is None else status for value, status in zip(rewards, whole, strict=True)],
            "error": [UNGRADED if value is None else error for value, error in zip(rewards, texts["error"], strict=True)],
        }


def _of_types(values: list[Any], *types: type) -> list[Any]:
    if set(map(type, values)) - {*types, type(None)}:
        raise _OutOfTheOrdinary
    return values


def _needed(known: dict[str, list[Any]], name: str) -> list[str]:
    if set(map(type, known.get(name, [None]))) != {str}:
        raise _OutOfTheOrdinary
    return known[name]


def _spelled(values: list[Any]) -> list[str | None]:
    _of_types(values, str, int, float)
    if set(map(type, values)) <= {str, type(None)}:
        return values
    return [None if value is None or value != value else spelled(value) for value in values]


def _floats(values: list[Any]) -> list[float | None]:
    _of_types(values, int, float)
    found = [None if value is None else float(value) for value in values]
    if not all(value is None or math.isfinite(value) for value in found):
        raise _OutOfTheOrdinary
    return found


def _whole(name: str, values: list[Any]) -> list[int | None]:
    _of_types(values, int)
    bound = 2 ** WIDTHS[name]
    if any(value is not None and not -bound <= value < bound for value in values):
        raise _OutOfTheOrdinary
    return values


def _places(texts: list[str]) -> tuple[list[str], list[int]]:
    """The different texts, and which of them each is."""
    number: dict[str, int] = {}
    places = [number.setdefault(text, len(number)) for text in texts]
    return list(number), places


def _keys(told: list[_Told], prompts: Sequence[list[int]]) -> list[bytes]:
    """The key of each row's group; rows that are told alike have one."""
    different = dict.fromkeys(told)
    found = {one: key_of(one[0], one[1], one[2], one[3], prompts[one[4]]) for one in different}
    return [found[one] for one in told]


def _column(ids: Ids, name: str) -> pl.Series:
    """Lists of token ids as a column."""
    offsets = np.zeros(len(ids.lengths) + 1, np.int64)
    np.cumsum(ids.lengths, out=offsets[1:])
    values = pa.Array.from_buffers(pa.int32(), len(ids.flat), [None, pa.py_buffer(ids.flat)])
    kind = pa.large_list(pa.int32())  # of buffers: made of arrays of numpy, pyarrow imports pandas
    return pl.Series(name, pa.Array.from_buffers(kind, len(ids.lengths), [None, pa.py_buffer(offsets)], children=[values]))


def _parts(components: dict[str, list[float | None]], count: int) -> list[str | None] | None:
    if not components:
        return None
    return [as_json(dict(zip(components, values, strict=True))) for values in zip(*components.values(), strict=True)]


def _series(name: str, values: Any, count: int) -> pl.Series:
    if values is None:
        return pl.Series(name, [None], SCHEMA[name]).new_from_index(0, count)
    if isinstance(values, pl.Series):
        return values.alias(name)
    return pl.Series(name, values, SCHEMA[name])
