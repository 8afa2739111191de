"""Names of graders, and the check of a reward config. Imports a built-in's library only when it is prepared."""

from __future__ import annotations

import difflib
import functools
import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.common.errors import DataError, UserError
from pipeline.common.own_code import OWN_FUNCTION, own_function, source_sha256
from pipeline.rewards.arguments import check_arguments
from pipeline.rewards.shapes import adapted

if TYPE_CHECKING:
    from pipeline.config.reward import RewardComponent, RewardConfig

BATCHED = ("reward_model", "judge", "pairwise_judge", "from_file", "human")
"""Built-ins that take many completions at once, each in one process of its own; see `pipeline.rewards.batches`."""

_MODULES = {"regex": "pattern", "reasoning_gym": "reasoning", "math_verify": "maths"}
"""Of graders named like a package: a module of that name would be taken for it."""
BUILTINS: Mapping[str, str] = {
    name: f"pipeline.rewards.graders.{_MODULES.get(name, name)}"
    for name in ("exact_match", "regex", "math_verify", "reasoning_gym", "environment", *BATCHED)
}
"""Module of each built-in; its function, or for the batched ones its class, has the grader's name."""

VERSIONS: Mapping[str, int] = {"math_verify": 3, "reasoning_gym": 2}
"""Built-ins that once gave other scores for the same args: one more with each such change. Recipes hold it from 2 on, so that
stored rewards are not taken for what the grader gives now."""

UNIT_SCORES = ("exact_match", "regex", "math_verify", "reasoning_gym")
"""Built-ins whose scores lie between 0 and 1."""

ASKED_ANEW = ("judge", "pairwise_judge")
"""Built-ins that may answer otherwise each time, so that nobody can grade again what they graded."""

BY_NAME = "by name"
"""In recipes of own functions that once were called by place, and then with other things."""

A_GRADER = "a grader is a function of your own"


class Component(Protocol):
    """What is read of a `pipeline.config.RewardComponent`."""

    @property
    def grader(self) -> str: ...
    @property
    def args(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class BoundGrader:
    """A grader with its args: `bound(completion, answer, prompt)` is the score, or the `Score`, that the function returned."""

    function: Callable[..., Any]
    args: Mapping[str, Any]
    prepare: Callable[[], None] = field(default=lambda: None)
    """Imports and builds what grading needs, so that the first completion does not pay for it."""
    told: tuple[str, ...] = ()
    """Names of what it is told of the completion beside its text: `finish_reason`, `episode_reward`, or nothing."""
    notes: tuple[str, ...] = ()
    """What the user should know before grading starts."""
    check_prompts: Callable[[Iterable[Mapping[str, Any]]], None] | None = None
    """Raises DataError for prompts that it cannot grade; None if it grades any."""

    def __call__(
        self, completion: str, answer: str | None, prompt: Mapping[str, Any], told: Mapping[str, Any] | None = None
    ) -> Any:
        known = {name: (told or {}).get(name) for name in self.told}
        return self.function(completion, answer, prompt, **self.args, **known)


def resolve(component: Component) -> BoundGrader:
    """The component's grader, with names and args checked and nothing graded.

    A function of the user's is imported, see `pipeline.common.own_code`; a built-in's library is not.

    Raises:
        UserError: no such grader, module or function; an unknown, missing or mistyped arg. The message has the nearest
            valid name.
    """
    args = dict(component.args)
    if ":" in component.grader:
        own = adapted(own_function(component.grader, A_GRADER), args)
        return BoundGrader(own, {}, check_prompts=own.check_prompts if own.columns else None)
    if component.grader not in BUILTINS:
        near = difflib.get_close_matches(component.grader, BUILTINS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(BUILTINS)};"
        raise UserError(f"no such grader; {hint} {OWN_FUNCTION}")
    module = importlib.import_module(BUILTINS[component.grader])
    function = getattr(module, component.grader)
    told = tuple(getattr(module, "TOLD", ()))
    check_arguments(function, args, given=0 if component.grader in BATCHED else 3, told=told)
    if hasattr(module, "check"):
        module.check(**args)
    hooks = {
        name: functools.partial(getattr(module, name), **args) for name in ("prepare", "check_prompts") if hasattr(module, name)
    }
    notes = tuple(module.notes(**args)) if hasattr(module, "notes") else ()
    return BoundGrader(function, args, told=told, notes=notes, **hooks)


def resolve_all(components: Sequence[Component]) -> list[BoundGrader]:
    """Every component's grader.

    Raises:
        UserError: one line per component that cannot be resolved.
    """
    graders, problems = [], []
    for i, component in enumerate(components):
        try:
            graders.append(resolve(component))
        except UserError as error:
            problems.append(_problem(i, component, error))
    _refuse(problems)
    return graders


def prepare_all(components: Sequence[Component], graders: Sequence[BoundGrader]) -> None:
    """Prepare every grader. Slow: libraries are imported here.

    Raises:
        UserError: one line per component that cannot be prepared, such as one that names an unknown dataset.
    """
    problems = []
    for i, (component, grader) in enumerate(zip(components, graders, strict=True)):
        try:
            grader.prepare()
        except UserError as error:
            problems.append(_problem(i, component, error))
    _refuse(problems)


def check_reward_config(config: RewardConfig) -> None:
    """Refuse a config whose graders cannot be found or called, in milliseconds for built-ins.

    What needs a grader's library, such as the name of a reasoning-gym dataset, is checked when a pool starts.

    Raises:
        UserError: one line per problem, each with the component's place in the config.
    """
    _refuse(
        f"reward.components.{i} ({component.grader}): weight is {component.weight}, expected a finite number"
        for i, component in enumerate(config.components)
        if not math.isfinite(component.weight)
    )
    resolve_all(config.components)


def check_prompts(components: Sequence[Component], prompts: Callable[[], Iterable[Mapping[str, Any]]], place: str) -> None:
    """Refuse prompts that graders cannot be asked about, before anything is generated.

    Args:
        prompts: gives rows of `schemas.Prompts`, as often as it is asked.
        place: where they are from.

    Raises:
        DataError: one line per component that cannot grade them.
    """
    problems = []
    for i, component in enumerate(components):
        look = resolve(component).check_prompts if component.grader not in BATCHED else None
        try:
            if look is not None:
                look(prompts())
        except DataError as error:
            problems.append(f"{place}: {_problem(i, component, error)}")
    if problems:
        raise DataError("\n".join(problems))


def notes_of(components: Sequence[Component]) -> list[str]:
    """What the user should know of graders that take one completion at a time."""
    return [note for component in components if component.grader not in BATCHED for note in resolve(component).notes]


def batched_module(grader: str) -> ModuleType:
    """The module of a grader that takes many completions at once."""
    if grader not in BATCHED:
        raise UserError(f"{grader} does not take completions in batches")
    return importlib.import_module(BUILTINS[grader])


def environment_of(component: Component) -> tuple[str, ...]:
    """Names of the variables that a batched grader needs."""
    module = batched_module(component.grader)
    return tuple(module.environment(**component.args)) if hasattr(module, "environment") else ()


def settled(component: RewardComponent) -> dict[str, Any]:
    """What of a component decides its scores: without places of files, addresses, time limits and the like."""
    fields = component.model_dump(mode="json")
    if component.grader in BATCHED:
        work = batched_module(component.grader).WORK
        fields["args"] = {name: value for name, value in fields["args"].items() if name not in work}
    return fields


def recipe_of(component: RewardComponent) -> dict[str, Any]:
    """A component as recipes hold it: what decides its scores, the grader's version, and the hash of the file or model it names.

    Raises:
        UserError: no such grader, file or model.
    """
    source, version = source_hash(component), version_of(component.grader)
    told: dict[str, Any] = {"source": source} if source else {}
    told |= {"version": version} if version > 1 else {}
    if ":" in component.grader and not adapted(own_function(component.grader, A_GRADER), component.args).standard:
        told |= {"arguments": BY_NAME}
    return settled(component) | told


def version_of(grader: str) -> int:
    """Of what a grader's scores mean: 1 unless `VERSIONS` has another."""
    return VERSIONS.get(grader, 1)


def places_of(components: Sequence[RewardComponent]) -> dict[str, Any]:
    """Where graders found what they graded with, for an artifact's notes: {} or {"graders": settings by column}."""
    work = {c.column: batched_module(c.grader).WORK for c in components if c.grader in BATCHED}
    found = {c.column: {name: c.args[name] for name in work[c.column] if name in c.args} for c in components if c.column in work}
    return {"graders": found} if found else {}


def source_hash(component: Component) -> str | None:
    """sha256 of what decides scores and lies in a file: the user's own function, a model, labels.

    So a changed grader is not taken for the old one. None for a built-in without one, or where a function has no source
    file. Modules that it imports do not count.

    Raises:
        UserError: no such module, function, file or model.
    """
    if component.grader in BATCHED:
        module = batched_module(component.grader)
        check_arguments(getattr(module, component.grader), component.args, given=0)
        return module.source(**component.args) if hasattr(module, "source") else None
    if component.grader in BUILTINS:
        return None
    return source_sha256(own_function(component.grader, A_GRADER))


def _problem(place: int, component: Component, error: Exception) -> str:
    return f"reward.components.{place} ({component.grader}): {error}"


def _refuse(problems: Iterable[str]) -> None:
    if lines := "\n".join(problems):
        raise UserError(lines)
