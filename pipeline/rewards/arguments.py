"""Check a grader's args against its signature, so that a misspelled arg is an answer and not ten thousand errors."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from inspect import Parameter
from typing import Any, Literal

from pipeline.common.errors import UserError

_CALL = "(completion, answer, prompt, **args)"
_SCALARS: tuple[type, ...] = (str, bool, int, float, type(None))


def check_arguments(function: Callable[..., Any], args: Mapping[str, Any], given: int = 3, told: Collection[str] = ()) -> None:
    """Refuse args that `function(completion, answer, prompt, **args)` would not take.

    Names are checked for every function, values only where a parameter is annotated with str, bool, int, float, None,
    a Literal or a union of these.

    Args:
        given: how many arguments the function is given beside args; 0 for what is opened once, with args alone.
        told: parameters that the worker sets and args may not.

    Raises:
        UserError: the function does not take three texts, is a coroutine, or an arg is unknown (with the nearest
            name), missing or of another type.
    """
    if inspect.iscoroutinefunction(function):
        raise UserError("is an `async def`; a grader is a plain function that returns a number")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell
        return
    settings = {name: parameter for name, parameter in _settings(signature, given).items() if name not in told}
    check_settings(function, settings, args, any_name=any(p.kind is Parameter.VAR_KEYWORD for p in signature.parameters.values()))


def check_settings(
    function: Callable[..., Any], settings: Mapping[str, Parameter], args: Mapping[str, Any], *, any_name: bool = False
) -> None:
    """Refuse args that are unknown, missing or of another type.

    Args:
        settings: the parameters that args may set.
        any_name: the function takes other names too.

    Raises:
        UserError: names the arg, and the nearest valid name.
    """
    if unknown := [name for name in args if name not in settings and not any_name]:
        near = difflib.get_close_matches(unknown[0], settings, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(settings) or 'none'}"
        raise UserError(f"unknown arg `{unknown[0]}`; {hint}")
    if missing := [name for name, p in settings.items() if p.default is Parameter.empty and name not in args]:
        raise UserError(f"needs a value for {', '.join(f'args.{name}' for name in missing)}")
    hints = _hints(function)
    for name, value in args.items():
        if name in settings and name in hints and not fits(value, hints[name]):
            raise UserError(f"args.{name}: expected {_spelled(hints[name])}, found {value!r}")


def _settings(signature: inspect.Signature, count: int) -> dict[str, Parameter]:
    """The parameters that `args` may set: all but the `count` that a grader is given."""
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature.parameters.values())
    given = [p for p in parameters if p.kind in positional][:count]
    if len(given) < count and not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        raise UserError(f"is called as {_CALL}, but its signature is {signature}")
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return {p.name: p for p in parameters if p not in given and p.kind in named}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # annotations may name what is not importable here
        return {}


def parameters_of(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Each parameter's annotation (`Any` without one), and whether it must be given."""
    hints = _hints(function)
    parameters = inspect.signature(function).parameters
    return {name: (hints.get(name, Any), p.default is Parameter.empty) for name, p in parameters.items()}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value read from YAML fits; True for annotations that are not understood here."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in typing.get_args(annotation))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(annotation))
    if annotation not in _SCALARS:
        return True
    if annotation in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if annotation is float else annotation)


def _spelled(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
