"""JSONL or Parquet of the user's own, its columns named with --map; and what `rollbook export` writes as dataset or sft."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.paths import at_path
from pipeline.exchange.imports.format import Format, Options, SaidColumns
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import (
    Values,
    answer,
    asked,
    integer,
    is_missing,
    messages,
    number,
    numbers,
    reference,
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
    "tokens": (),
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
"""What a completion may have, and the columns that are taken for it unless --map says otherwise. `tokens` is a prompt with
its completion, and then action_mask is of all of them."""
COMPONENT = "reward_"
NOWHERE = ""
"""Where a row has what it has only if --map says where."""
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class Plain(Format):
    """SaidColumns by our names, or as they are mapped. SaidColumns that start with reward_ are parts of the reward."""

    name = "plain"
    title = "JSONL or Parquet with columns of your own"
    signatures = (
        ("prompt_text", "completion_text"),
        ("prompt_token_ids", "completion_token_ids"),
        ("prompt", "completion", "reward", "group_id"),
    )
    fields = {name: f"columns {' or '.join(columns)}" for name, columns in NAMES.items()}
    engine = "unknown"
    takes = frozenset(NAMES)
    defaults = NAMES

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if "prompt" in options.columns and options.columns["prompt"] == options.columns.get("completion"):
            raise UserError(f"--map: {options.columns['prompt']} is named as the prompt and as the completion")

    def columns(self, rows: Sequence[SourceRow]) -> SaidColumns | None:
        first = rows[0].values
        if any(row.part is not None or row.values.keys() != first.keys() for row in rows):
            return None
        if not first.keys() >= {*self.options.columns.values(), *(self.options.rewards or ())}:
            return None
        at = {name: column for name in self.defaults if (column := self._column(name, first)) in first}
        components = self._components(first)
        texts = (row.values[at[name]] for name in ("prompt", "completion") if name in at for row in rows)
        if any(isinstance(text, str) and text.startswith(HUMAN) for text in texts):
            return None
        used = {*at.values(), *components.values()}
        return SaidColumns(
            {name: [row.values[column] for row in rows] for name, column in at.items()},
            {name: [row.values[column] for row in rows] for name, column in components.items()},
            [rest_of(row.values, used) for row in rows] if first.keys() - used else None,
        )

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = {**row.values}
        at = {name: self._column(name, values) for name in self.defaults}
        components = self._components(values)
        said = self._said(values, at)
        _refuse_dialogue(said, at)
        if not said["group"] and row.part is not None:
            said["group"] = (f"{row.file} {row.number}",)
        yield Known(row=row, **said, rest=rest_of(row.values, {*at.values(), *components.values()}))

    def _column(self, name: str, values: Values) -> str:
        """Where a row has what we call so: a column, or the path below one, whose value is then put beside the columns."""
        if name in self.options.columns:
            path = self.options.columns[name]
            try:
                values[path] = at_path(values, path)
            except KeyError:
                raise ValueError(f"column {path}: missing, and --map {name}={path} names it") from None
            return path
        return next((column for column in self.defaults[name] if column in values), next(iter(self.defaults[name]), NOWHERE))

    def _components(self, values: Values) -> dict[str, str]:
        """Parts of the reward by name."""
        if self.options.rewards is None:
            return {column.removeprefix(COMPONENT): column for column in values if column.startswith(COMPONENT)}
        for path in self.options.rewards:
            try:
                values[path] = at_path(values, path)
            except KeyError:
                raise ValueError(f"column {path}: missing, and --rewards names it") from None
        return {path.rpartition(".")[2].removeprefix(COMPONENT): path for path in self.options.rewards}

    def _said(self, values: Values, at: dict[str, str]) -> dict[str, Any]:
        texts = ("finish_reason", "prompt_id", "logprobs_mode", "policy", "engine", "status", "error")
        group = text(values, at["group"])
        prompt = None if is_missing(values.get(at["prompt"])) else messages(values, at["prompt"])
        return {
            **{name: text(values, at[name]) for name in texts},
            **{name: number(values, at[name]) for name in ("reward", "temperature", "top_p", "min_p")},
            **{name: integer(values, at[name]) for name in ("seed", "top_k", "policy_version")},
            "answer": self._reference(values, at["answer"]),
            "prompt": None if prompt is None else asked(prompt),
            "completion": self._completion(values, at["completion"], prompt),
            **_tokens(values, at),
            "group": () if group is None else (group,),
            "components": {name: number(values, column) for name, column in self._components(values).items()},
        }

    def _reference(self, values: Values, column: str) -> str | None:
        value = values.get(column)
        return reference(value) if isinstance(value, list) else text(values, column)

    def _completion(self, values: Values, column: str, prompt: Any) -> Any:
        """What the column has, or the assistant's turn that the prompt's messages end with."""
        if not is_missing(values.get(column)):
            return answer(values, column)
        if isinstance(prompt, list) and prompt and prompt[-1]["role"] == "assistant" and "completion" not in self.options.columns:
            return answer({column: prompt[-1:]}, column)
        return None


def _tokens(values: Values, at: dict[str, str]) -> dict[str, Any]:
    """Tokens with their mask and logprobs, of the prompt and the completion apart or in one sequence."""
    mask, logprobs = truths(values, at["action_mask"]), numbers(values, at["logprobs"])
    if (ids := token_ids(values, at["tokens"])) is not None:
        if mask is None:
            raise ValueError(f"column {at['action_mask']}: is null or missing, and says where in the tokens the completion is")
        return split(ids, mask, logprobs, column=at["action_mask"])
    return {
        "prompt_tokens": token_ids(values, at["prompt_tokens"]),
        "completion_tokens": token_ids(values, at["completion_tokens"]),
        "logprobs": logprobs,
        "action_mask": mask,
    }


def _refuse_dialogue(said: dict[str, Any], at: dict[str, str]) -> None:
    """
    Raises:
        ValueError: a text is a whole dialogue, as those of hh-rlhf are, and not the part that it is taken for.
    """
    remedy = "is a dialogue of Human and Assistant turns. Sets of chosen and rejected dialogues: --format preference"
    completion, prompt = said["completion"], said["prompt"]
    if isinstance(completion, str) and completion.startswith(HUMAN) and ASSISTANT in completion:
        raise ValueError(f"column {at['completion']}: {remedy}")
    if isinstance(prompt, str) and prompt.startswith(HUMAN) and prompt.rpartition(ASSISTANT)[2].strip() and ASSISTANT in prompt:
        raise ValueError(f"column {at['prompt']}: {remedy}")


FORMAT = Plain
