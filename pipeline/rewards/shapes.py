"""Own functions as graders: each parameter is given what its name says, whatever trainer the function was written for.

    (completion, answer, prompt, **args)                            ours; answer and prompt may be left out
    (data_source, solution_str, ground_truth, extra_info, **args)   verl's, and in lists (data_sources, solution_strs, …)
    (prompts, completions, **columns)                               TRL's: lists; columns are those of the prompt
    (queries, prompts, labels)                                      OpenRLHF's: lists

A function of lists is given one completion at a time, and returns a list of one. What no shape fits is refused before any work.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from pipeline.common.errors import DataError, UserError
from pipeline.rewards.arguments import check_settings
from pipeline.rewards.items import Score
from pipeline.rewards.returned import shown

KNOWN = (
    "(completion, answer, prompt), verl's (data_source, solution_str, ground_truth, extra_info), "
    "TRL's (prompts, completions, **columns) and OpenRLHF's (queries, prompts, labels)"
)
CONVERSATIONAL = "conversational"
"""Arg of a function of lists: prompts and completions are chat messages, as TRL gives them for prompts that are chats."""
REWARDS = "rewards"
"""Entry of a mapping that holds the list, as OpenRLHF has it."""
_WHOLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Given:
    """What there is to give for one completion."""

    completion: str
    answer: str | None
    prompt: Mapping[str, Any]
    """The prompt's row."""

    @property
    def metadata(self) -> dict[str, Any]:
        found = self.prompt.get("metadata") or {}
        return dict(json.loads(found) if isinstance(found, str) else found)

    @property
    def prompt_text(self) -> str:
        return str(self.prompt.get("prompt_text") or self.prompt.get("question") or "")

    @property
    def columns(self) -> dict[str, Any]:
        """The prompt's columns by name, the source's own beside ours."""
        ours = {name: self.prompt.get(name) for name in ("prompt_id", "question")}
        return {**ours, "answer": self.answer, **self.metadata}


_Giver = Callable[[Given], Any]
SINGLE: Mapping[str, _Giver] = {
    **dict.fromkeys(("completion", "response", "solution_str"), lambda given: given.completion),
    **dict.fromkeys(("answer", "ground_truth", "reference"), lambda given: given.answer),
    "prompt": lambda given: given.prompt,
    "prompt_text": lambda given: given.prompt_text,
    "question": lambda given: given.prompt.get("question"),
    "prompt_id": lambda given: given.prompt.get("prompt_id"),
    **dict.fromkeys(("metadata", "info"), lambda given: given.metadata),
    "data_source": lambda given: given.metadata.get("data_source"),
    "extra_info": lambda given: given.metadata.get("extra_info", given.metadata),
}
"""What a parameter of that name is given."""
LISTS: Mapping[str, _Giver] = {
    **dict.fromkeys(("completions", "responses", "solution_strs"), lambda given: given.completion),
    **dict.fromkeys(("ground_truths", "labels", "answers"), lambda given: given.answer),
    "prompts": lambda given: given.prompt_text,
    "queries": lambda given: given.prompt_text + given.completion,
    "data_sources": lambda given: given.metadata.get("data_source"),
    "extra_infos": lambda given: given.metadata.get("extra_info", given.metadata),
}
"""What a parameter of that name is given a list of one of."""
REFERENCES = ("answer", "ground_truth", "solution", "reference", "target", "label")
"""Columns that hold the answer, unless the prompt has a column of that name."""
_COMPLETION = ("completion", "response", "solution_str"), ("completions", "responses", "solution_strs", "queries")
_ELSEWHERE = ("completion_ids", "prompt_ids", "completions_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL gives beside columns, and nobody has here."""
_SETTABLE = ("data_source", "extra_info", "data_sources", "extra_infos", "metadata", "info")
"""Parameters that args may set too, for data without them."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """An own function, called with (completion, answer, prompt)."""

    function: Callable[..., Any]
    givers: Mapping[str, _Giver]
    """By parameter. Of functions of lists, these are the elements."""
    positional: tuple[str, ...]
    """Parameters that have no name to whoever calls it, in their order."""
    args: Mapping[str, Any]
    lists: bool
    every_column: bool
    """Whether it takes the columns that it does not name."""
    columns: tuple[str, ...]
    """Of the prompts, without which it cannot be called."""
    optional: tuple[str, ...]
    """Parameters that are given where the prompt has such a column."""
    standard: bool
    """Whether it was called the same before names were looked at."""

    def __call__(self, completion: str, answer: str | None, prompt: Mapping[str, Any]) -> Any:
        given = Given(completion, answer, prompt)
        values = {name: giver(given) for name, giver in self.givers.items()}
        if not self.lists:
            return self._called({**values, **self.args})
        there = {**dict.fromkeys(REFERENCES, answer), **given.columns}
        if absent := [name for name in self.columns if name not in there]:
            raise ValueError(f"the prompt has no column {absent[0]!r}; it has {', '.join(given.columns)}")
        asked = (*self.columns, *self.optional)
        columns = {name: value for name, value in there.items() if name in asked or (self.every_column and name in given.columns)}
        return _only(self._called({**{name: [value] for name, value in {**columns, **values}.items()}, **self.args}))

    def check_prompts(self, prompts: Iterable[Mapping[str, Any]]) -> None:
        """
        Raises:
            DataError: it asks for a column that no prompt has.
        """
        wanted = {name for name in self.columns if name not in REFERENCES}
        names: set[str] = set()
        for prompt in prompts if wanted else ():
            names |= Given("", None, prompt).columns.keys()
            if wanted <= names:
                return
        if absent := sorted(wanted - names):
            raise DataError(f"asks for the column {absent[0]!r}, which no prompt has; there are {', '.join(sorted(names))}")

    def _called(self, values: Mapping[str, Any]) -> Any:
        named = {name: value for name, value in values.items() if name not in self.positional}
        return self.function(*(values[name] for name in self.positional if name in values), **named)


def adapted(function: Callable[..., Any], args: Mapping[str, Any]) -> Adapted:
    """
    Raises:
        UserError: it cannot be called with what there is, or args do not fit; says what it asks for.
    """
    _refuse_asynchronous(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise UserError(f"does not say what it takes, and is called by names: {KNOWN}. Wrap it in a function of yours") from None
    parameters = {p.name: p for p in signature.parameters.values() if p.kind not in _WHOLE}
    any_name = any(p.kind is Parameter.VAR_KEYWORD for p in signature.parameters.values())
    single, lists = ([name for name in parameters if name in names] for names in _COMPLETION)
    if bool(single) == bool(lists):
        raise UserError(f"its signature is {signature}, and parameters are matched by name: {KNOWN}. {_advice(single)}")
    givers: dict[str, _Giver] = {name: giver for name, giver in (LISTS if lists else SINGLE).items() if name in parameters}
    settings = {name: p for name, p in parameters.items() if name not in givers or name in _SETTABLE}
    columns = _columns(settings, args) if lists else ()
    own = {name: value for name, value in args.items() if name != CONVERSATIONAL or name in parameters or not lists}
    _check(function, signature, {name: p for name, p in settings.items() if name not in columns}, givers, own, any_name)
    if lists and own != args and args[CONVERSATIONAL]:
        givers = {**givers, **{name: giver for name, giver in _messages().items() if name in givers}}
    if not lists and "prompt" in givers and _is_text(function, "prompt"):
        givers["prompt"] = lambda given: given.prompt_text
    return Adapted(
        function,
        {name: giver for name, giver in givers.items() if name not in own},
        tuple(name for name, p in parameters.items() if p.kind is Parameter.POSITIONAL_ONLY),
        own,
        lists=bool(lists),
        every_column=bool(lists) and any_name,
        columns=columns,
        optional=tuple(name for name in settings if name not in columns and name not in own) if lists else (),
        standard=tuple(parameters)[:3] == ("completion", "answer", "prompt") and not _is_text(function, "prompt"),
    )


def _refuse_asynchronous(function: Callable[..., Any]) -> None:
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise UserError("is an `async def`; a grader is a plain function that returns a number")
        if inspect.isgeneratorfunction(called):
            raise UserError("yields; a grader is a plain function that returns a number")


def _advice(single: Collection[str]) -> str:
    if single:
        return "It asks for one completion and for a list of them: take one of these"
    return "None of its parameters is the completion: rename them, or wrap it in a function of yours"


def _columns(settings: Mapping[str, Parameter], args: Mapping[str, Any]) -> tuple[str, ...]:
    """Parameters of a function of lists that are columns of the prompts."""
    needed = [name for name, p in settings.items() if p.default is Parameter.empty and name not in args and name not in _SETTABLE]
    return tuple(name for name in needed if name not in _ELSEWHERE)


def _check(
    function: Callable[..., Any],
    signature: inspect.Signature,
    settings: Mapping[str, Parameter],
    givers: Mapping[str, _Giver],
    args: Mapping[str, Any],
    any_name: bool,
) -> None:
    """Refuse args that do not fit, and parameters that nothing is known for."""
    free = {name: p.replace(default=None) if name in givers else p for name, p in settings.items()}
    missing = [name for name, p in free.items() if p.default is Parameter.empty and name not in args]
    if missing:
        raise UserError(
            f"needs a value for {', '.join(f'args.{name}' for name in missing)}: its signature is {signature}, and there is "
            f"nothing of that name to give. Known are {KNOWN}"
        )
    if reserved := [name for name in args if name in givers and name not in free]:
        raise UserError(f"unknown arg `{reserved[0]}`; that parameter is given what its name says")
    check_settings(function, free, args, any_name=any_name)


def _messages() -> dict[str, _Giver]:
    def completion(given: Given) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": given.completion}]

    def prompt(given: Given) -> list[dict[str, str]]:
        return [{"role": "user", "content": str(given.prompt.get("question") or given.prompt_text)}]

    return {"completions": completion, "prompts": prompt}


def _is_text(function: Callable[..., Any], name: str) -> bool:
    try:
        return bool(typing.get_type_hints(function).get(name) is str)
    except Exception:  # annotations may name what is not importable here
        return False


def _only(returned: Any) -> Any:
    """The score that a function of lists returned for its one completion."""
    found = returned[REWARDS] if isinstance(returned, Mapping) and REWARDS in returned else returned
    if isinstance(found, (list, tuple)) or len(getattr(found, "shape", ())) == 1:
        if len(found) == 1:
            return found[0]
        return Score(None, f"returned {len(found)} scores for one completion: {shown(returned)}")
    return Score(None, f"returned {shown(returned)}, expected a list of one score")
