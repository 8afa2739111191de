"""One YAML file describes a run. Read and validated here in milliseconds: no module of this room imports torch or vLLM.

Unknown keys are refused with the nearest valid name; `--set train.epochs=4` overrides any of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.common.errors import UserError
from pipeline.common.near import did_you_mean
from pipeline.config.course import Course, Unsound
from pipeline.config.plain_yaml import parse_yaml
from pipeline.config.reward_model import RewardModelConfig
from pipeline.config.run import RunConfig

SUFFIXES = (".yaml", ".yml")
"""Of configs."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run's YAML file.

    Args:
        path: the file. Relative paths in it are relative to the working directory.
        overrides: `key.path=value` texts; the value is YAML.

    Raises:
        UserError: no such file, not YAML, an unknown key (with the nearest valid name) or a value out of range.
    """
    return _validated(_tree(path), overrides, str(path))


def load_reward_model(path: str | Path, overrides: Sequence[str] = ()) -> RewardModelConfig:
    """Read and validate a reward model's YAML file.

    Raises:
        UserError: as `load_config`.
    """
    tree = _tree(path)
    for override in overrides:
        _apply(tree, override)
    try:
        return RewardModelConfig.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in describe_errors(error, RewardModelConfig))
        raise UserError(f"{path}:\n{lines}") from None


def _tree(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings as it stands there."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such config file{did_you_mean(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a directory, and not a run's YAML file{_config_in(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping such as `name: demo`, found {type(tree).__name__}")
    return tree


def _config_in(directory: Path) -> str:
    """Which file of a directory may be meant."""
    found = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
    return f". Did you mean {found[0]}?" if found else ". Name the file that the run is described in, such as run.yaml"


def change_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same run with some settings changed, as by `load_config`.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    return _validated(config.model_dump(mode="json"), overrides, "--set")


def with_plugins(config: RunConfig, files: Sequence[str]) -> RunConfig:
    """The same run with more files of the user's own."""
    return config.model_copy(update={"plugins": tuple(dict.fromkeys((*config.plugins, *files)))})


def _validated(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> RunConfig:
    for override in overrides:
        _apply(tree, override)
    try:
        config = RunConfig.model_validate(tree)
        Course(config).check()
    except ValidationError as error:
        raise UserError(f"{origin}:\n" + "\n".join(f"  {line}" for line in describe_errors(error, RunConfig))) from None
    except Unsound as unsound:
        lines = [unsound.why] if isinstance(unsound.why, str) else describe_errors(unsound.why, RunConfig)
        joint = ": " if isinstance(unsound.why, str) else "."
        raise UserError(f"{origin}:\n" + "\n".join(f"  {unsound.where}{joint}{line}" for line in lines)) from None
    return config


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, such as --set train.epochs=4")
    *parents, last = key.strip().split(".")
    node = tree
    for depth, parent in enumerate(parents, 1):
        whole = ".".join(parents[:depth])
        if node.get(parent) is None:
            node[parent] = {}
        child = node[parent]
        if not isinstance(child, dict):
            remedy = (
                f"a list; change it in the file, or give all of it: --set '{whole}=[…]'"
                if isinstance(child, list)
                else "not a section"
            )
            raise UserError(f"--set {override}: {parent} is {remedy}")
        node = child
    try:
        node[last] = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}") from None


def _abbreviated(key: str, names: Sequence[str]) -> list[str]:
    """The names whose words begin with the letters of the key.

    >>> _abbreviated("lr", ["lora", "learning_rate"])
    ['learning_rate']
    """
    return [name for name in names if "_" in name and "".join(word[:1] for word in name.split("_")) == key]


def describe_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem: where, what, and the nearest valid key for an unknown one."""
    lines = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        if problem["type"] == "too_short" and any(place[: len(problem["loc"])] == problem["loc"] != place for place in places):
            continue  # items that are wrong themselves are not counted
        where = ".".join(str(part) for part in problem["loc"]) or "config"
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            names = _keys_at(model, parents)
            near = [*_abbreviated(str(key), names), *difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)]
            hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(names)}"
            lines.append(f"{where}: unknown key; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing, and it has no default")
        elif problem["type"] == "model_type":
            lines.append(f"{where}: expected a section of settings, found {problem['input']!r}")
        elif problem["type"] == "tuple_type":
            lines.append(f"{where}: expected a list: [a, b], or a line with a dash for each item; found {problem['input']!r}")
        else:
            found = problem.get("input")
            shown = "" if isinstance(found, dict) else f" (found {found!r})"
            if isinstance(found, dict) and problem["type"] == "string_type":
                shown = ", found a mapping: a text with a colon or with braces needs quotes" + _quoted(where, found)
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def _quoted(where: str, found: dict[Any, Any]) -> str:
    """How a placeholder that YAML took for a mapping is written.

    >>> _quoted("data.template", {"question": None})
    ': template: "{question}"'
    """
    if list(found.values()) != [None]:
        return ""
    return f': {where.rpartition(".")[2]}: "{{{next(iter(found))}}}"'


def _keys_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Valid keys of the section that `path` leads to."""
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return sorted(field.alias or name for name, field in model.model_fields.items())
