"""Names of environments, and what of one decides its episodes."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.common.own_code import own_function, source_sha256
from pipeline.environments.protocol import Environment
from pipeline.rewards.arguments import check_settings
from pipeline.sources.tools import schemas_of, tool_named

if TYPE_CHECKING:
    from pipeline.config.environment import EnvironmentConfig

BUILTINS: Mapping[str, str] = {
    "calculator": "Calculator",
    "tools": "Tools",
    "verifiers_tasks": "VerifiersTasks",
    "reasoning_gym_tasks": "ReasoningGymTasks",
    "textarena_games": "TextArenaGames",
}
"""Class of each built-in; its module has the environment's name."""
VERSIONS: Mapping[str, int] = {}
"""Built-ins that once answered otherwise: one more with each such change. Recipes hold it from 2 on."""
AN_ENVIRONMENT = "an environment is a class of your own"
OWN_CLASS = "your own class is named 'package.module:Class'"


@dataclass(frozen=True, slots=True)
class BoundEnvironment:
    """A class with its args: calling it makes the environment of one episode."""

    made_by: Callable[..., Any]
    args: Mapping[str, Any]

    def __call__(self) -> Environment:
        environment: Environment = self.made_by(**self.args)
        return environment

    def prepare(self, model: str | None) -> None:
        """Do what is done once for all episodes, in the process that they are forked from: the class's own `prepare`.

        Args:
            model: directory of the policy, if there is one.
        """
        prepare = getattr(self.made_by, "prepare", None)
        if inspect.ismethod(prepare):
            prepare(model, **self.args)

    @property
    def reads_special_tokens(self) -> bool:
        """Whether special tokens are part of the actions that it is given."""
        return getattr(self.made_by, "reads_special_tokens", False) is True

    @property
    def deterministic(self) -> bool:
        """Whether it says that equal prompts, seeds and actions are answered equally."""
        return getattr(self.made_by, "deterministic", False) is True


def resolve(name: str, args: Mapping[str, Any]) -> BoundEnvironment:
    """An environment by its name, with its args checked. A class of the user's is imported.

    Raises:
        UserError: no such environment, or an unknown, missing or mistyped arg. The message has the nearest valid name.
    """
    made_by = _class(name)
    if missing := [method for method in ("start", "step") if not callable(getattr(made_by, method, None))]:
        raise UserError(f"{name}: has no {' and no '.join(missing)}; expected a class with start(prompt, seed) and step(action)")
    try:
        parameters = inspect.signature(made_by).parameters
    except (TypeError, ValueError):  # some written in C do not tell
        return BoundEnvironment(made_by, args)
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    settings = {name: parameter for name, parameter in parameters.items() if parameter.kind in kinds}
    check_settings(getattr(made_by, "__init__", made_by), settings, args, any_name=any_name)
    return BoundEnvironment(made_by, args)


def check_environment(config: EnvironmentConfig | None) -> None:
    """Refuse an environment that cannot be found or made.

    Raises:
        UserError: says why, and names the setting.
    """
    if config is None:
        return
    try:
        library = getattr(resolve(config.name, config.given).made_by, "library", None)
        if isinstance(library, str) and importlib.util.find_spec(library) is None:
            raise UserError(f"name: {config.name} takes the library {library}, which is not installed here")
        schemas_of(config.tools)
    except UserError as error:
        raise UserError(f"environment: {str(error).removeprefix('environment.')}") from None


def recipe_of_environment(config: EnvironmentConfig) -> dict[str, Any]:
    """What of the settings decides an episode: without limits of time and memory. With the hash of one's own class or taskset.

    Raises:
        UserError: no such environment.
    """
    told: dict[str, Any] = {"name": config.name, "args": dict(config.args)}
    if config.tools:
        told["tools"] = {name: source_sha256(tool_named(name)) if ":" in name else None for name in config.tools}
    told |= {"max_turns": config.max_turns, "max_tokens": config.max_tokens}
    if config.history != "drawn":
        told["history"] = config.history
    if (version := VERSIONS.get(config.name, 1)) > 1:
        told["version"] = version
    made_by = _class(config.name)
    by_args = getattr(made_by, "source", None) if config.name in BUILTINS else None
    source = by_args(**config.given) if by_args else None if config.name in BUILTINS else source_sha256(made_by)
    return {**told, "source": source} if source else told


def rows_of_episode(recipe: Mapping[str, Any]) -> int:
    """Rows that a completion may have, by the recipe of its rollouts: one for each turn where the history is rendered."""
    stated = recipe.get("environment")
    return int(stated["max_turns"]) if isinstance(stated, Mapping) and stated.get("history") == "rendered" else 1


def _class(name: str) -> Callable[..., Any]:
    if ":" in name:
        return own_function(name, AN_ENVIRONMENT)
    if name not in BUILTINS:
        near = difflib.get_close_matches(name, BUILTINS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(BUILTINS)};"
        raise UserError(f"no such environment as {name}; {hint} {OWN_CLASS}")
    found: Callable[..., Any] = getattr(importlib.import_module(f"pipeline.environments.{name}"), BUILTINS[name])
    return found
