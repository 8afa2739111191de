"""JSONL or Parquet of the user's own, its columns named with --map; and what `rollbook export --to dataset` writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import (
    answer_text,
    integer,
    is_missing,
    messages,
    number,
    numbers,
    rest_of,
    text,
    token_ids,
    truths,
)

NAMES = {
    "prompt": ("prompt", "prompt_text"),
    "completion": ("completion", "completion_text"),
    "prompt_tokens": ("prompt_tokens", "prompt_token_ids"),
    "completion_tokens": ("completion_tokens", "completion_token_ids"),
    "logprobs": ("logprobs", "behavior_logprobs"),
    "logprobs_mode": ("logprobs_mode",),
    "action_mask": ("action_mask",),
    "answer": ("answer",),
    "reward": ("reward",),
    "finish_reason": ("finish_reason",),
    "group": ("group", "group_id"),
    "prompt_id": ("prompt_id",),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "policy": ("policy", "policy_id"),
    "policy_version": ("policy_version",),
    "engine": ("engine",),
    "status": ("status",),
    "error": ("error",),
}
"""What a completion may have, and the columns that are taken for it unless --map says otherwise."""
COMPONENT = "reward_"


class Plain(Format):
    """Columns by our names, or as they are mapped. Columns that start with reward_ are parts of the reward."""

    name = "plain"
    title = "JSONL or Parquet with columns of your own"
    signatures = (("prompt_text", "completion_text"), ("prompt_token_ids", "completion_token_ids"))
    fields = {name: f"columns {' or '.join(columns)}" for name, columns in NAMES.items()}
    engine = "unknown"
    takes = frozenset(NAMES)
    defaults = NAMES

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        at = {name: self._column(name, values) for name in self.defaults}
        components = self._components(values)
        yield Known(row=row, **self._said(values, at), rest=rest_of(values, {*at.values(), *components.values()}))

    def _column(self, name: str, values: dict[str, Any]) -> str:
        if name in self.options.columns:
            column = self.options.columns[name]
            if column not in values:
                raise ValueError(f"column {column}: missing, and --map {name}={column} names it")
            return column
        return next((column for column in self.defaults[name] if column in values), self.defaults[name][0])

    def _components(self, values: dict[str, Any]) -> dict[str, str]:
        """Parts of the reward by name."""
        if self.options.rewards is not None:
            return {column.removeprefix(COMPONENT): column for column in self.options.rewards}
        return {column.removeprefix(COMPONENT): column for column in values if column.startswith(COMPONENT)}

    def _said(self, values: dict[str, Any], at: dict[str, str]) -> dict[str, Any]:
        texts = ("answer", "finish_reason", "prompt_id", "logprobs_mode", "policy", "engine", "status", "error")
        group = text(values, at["group"])
        return {
            **{name: text(values, at[name]) for name in texts},
            **{name: number(values, at[name]) for name in ("reward", "temperature", "top_p", "min_p")},
            **{name: integer(values, at[name]) for name in ("seed", "top_k", "policy_version")},
            "prompt": None if is_missing(values.get(at["prompt"])) else messages(values, at["prompt"]),
            "completion": None if is_missing(values.get(at["completion"])) else answer_text(values, at["completion"]),
            "prompt_tokens": token_ids(values, at["prompt_tokens"]),
            "completion_tokens": token_ids(values, at["completion_tokens"]),
            "logprobs": numbers(values, at["logprobs"]),
            "action_mask": truths(values, at["action_mask"]),
            "group": () if group is None else (group,),
            "components": {name: number(values, column) for name, column in self._components(values).items()},
        }


FORMAT = Plain
