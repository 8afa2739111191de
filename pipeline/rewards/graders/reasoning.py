"""reasoning_gym: the score that a reasoning-gym dataset gives to the completion."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from pipeline.common.errors import DataError, UserError
from pipeline.common.lines import one_line
from pipeline.rewards.graders.measured import measured, needs, runs_completions, weaknesses
from pipeline.rewards.graders.text import compile_pattern, last_captured
from pipeline.rewards.items import Score

ROUNDING = 1e-6
"""A score this much above 1 is 1: some scorers add shares up."""
SHOWN = 5
"""Prompts that a refusal names."""
_GRIDS: Mapping[str, tuple[str, ...]] = {"arc_agi": ("input", "output"), "rearc": ("input", "output")}
"""Metadata that scorers compare as tuples of tuples, and that a file can hold as lists only."""


def reasoning_gym(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    dataset: str | None = None,
    extract: str | None = None,
    config: Mapping[str, Any] | None = None,
    accept_weakness: bool = False,
) -> Score:
    """What the dataset's `score_answer(answer, entry)` returns for the stripped completion.

    The entry is made of the prompt's question, its answer and its column `metadata` (a struct, or JSON text). A completion on
    which the scorer raises is worth 0, and the remark says so.

    Args:
        dataset: name of a reasoning-gym dataset, such as countdown. Default: the prompt's metadata.source_dataset.
        extract: regular expression; what its last match captures stands for the completion. Without a match the
            dataset scores a missing answer, which nearly all of them score 0.
        config: what the dataset was made with, such as {max_num_decimal_places: 8}; some scorers read it. Of composite, its
            `datasets`, a list of {name, config}.
        accept_weakness: use a dataset that can be solved without solving its questions, that executes the completion, or whose
            items cannot be made again. Which these are is measured: docs/grading.md.

    Raises:
        ValueError: the prompt is not one that this dataset can score: no dataset is named, or none of that name is known, it is
            weak, or metadata is missing.
    """
    metadata = metadata_of(prompt)
    name = _name(metadata, dataset)
    for problem in _problems(name, metadata, dataset, accept_weakness):
        raise ValueError(problem)
    given = completion if extract is None else last_captured(extract, completion)
    entry = {"question": prompt.get("question"), "answer": answer, "metadata": _typed(name, metadata)}
    score_of = scorer(name, json.dumps(_config_of(name, dataset, config), sort_keys=True))
    try:
        found = score_of(answer=None if given is None else given.strip(), entry=entry)
    except MemoryError:
        raise
    except Exception as error:
        _refuse_unsound(score_of, name, answer, entry, error)
        return Score(0.0, remark=one_line(f"0: {name} cannot read it: {type(error).__name__}: {error}"))
    return _bounded(name, float(found))


def metadata_of(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt's metadata, also where a file's column of that name was put into a column of that name."""
    found = prompt.get("metadata") or {}
    if isinstance(found, str):
        found = json.loads(found)
    inner = found.get("metadata")
    if isinstance(inner, str) and inner.lstrip().startswith("{"):
        inner = json.loads(inner)
    return {**found, **inner} if isinstance(inner, dict) else dict(found)


def check(
    *,
    extract: str | None = None,
    dataset: str | None = None,
    config: Mapping[str, Any] | None = None,
    accept_weakness: bool = False,
) -> None:
    if extract is not None:
        compile_pattern("extract", extract)
    if config is not None and not isinstance(config, Mapping):
        raise UserError(f"args.config: expected settings of the dataset, such as {{max_value: 99}}, found {config!r}")
    if config and dataset is None:
        raise UserError("args.config: settings of which dataset? Name it in args.dataset")
    if dataset is not None and not accept_weakness and (weak := _refusal(dataset)):
        raise UserError(weak)


def check_prompts(
    prompts: Iterable[Mapping[str, Any]], *, dataset: str | None = None, accept_weakness: bool = False, **_: Any
) -> None:
    """Refuse prompts that this grader cannot score.

    Raises:
        DataError: names the first of them, and what is wrong with each.
    """
    bad = []
    for prompt in prompts:
        metadata = metadata_of(prompt)
        try:
            name = _name(metadata, dataset)
        except ValueError as error:
            bad.append((prompt.get("prompt_id"), str(error)))
            continue
        bad += [(prompt.get("prompt_id"), problem) for problem in _problems(name, metadata, dataset, accept_weakness)]
    if bad:
        told = "\n  ".join(f"prompt {prompt_id!r}: {problem}" for prompt_id, problem in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"prompts that reasoning_gym cannot score:\n  {told}{more}")


def notes(*, dataset: str | None = None, **_: object) -> list[str]:
    """What whoever accepted a weak dataset is told whenever it is used."""
    if dataset is None or not runs_completions(dataset):
        return []
    return [f"reasoning_gym executes what the model writes as Python code (dataset {dataset}), in a worker without a sandbox"]


def prepare(*, dataset: str | None = None, config: Mapping[str, Any] | None = None, **_: object) -> None:
    """Import the library and build the dataset.

    Raises:
        UserError: reasoning-gym has no such dataset, or the dataset no such setting; the message has the nearest name.
    """
    import reasoning_gym  # noqa: F401 - so that the import is not counted as grading

    if dataset is not None and dataset != "composite":
        try:
            scorer(dataset, json.dumps(config or {}, sort_keys=True))
        except ValueError as error:
            raise UserError(str(error)) from None


@cache
def scorer(name: str, config: str = "{}") -> Callable[..., float]:
    """The `score_answer` of a dataset.

    Args:
        config: its settings, a JSON object.

    Raises:
        ValueError: no such dataset, no such setting, or a value that the dataset refuses.
    """
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "the reasoning-gym README lists them"
        raise ValueError(f"reasoning-gym has no dataset {name!r}; {hint}")
    make, settings = DATASETS[name]
    try:
        found: Callable[..., float] = make(config=_settings(name, settings, json.loads(config))).score_answer
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"args.config: {name} refuses it: {error}") from None
    return found


def _config_of(name: str, dataset: str | None, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What one dataset was made with."""
    if dataset != "composite":
        return config or {}
    parts = (config or {}).get("datasets") or []
    return next((part.get("config") or {} for part in parts if part.get("name") == name), {})


def _settings(name: str, settings: type, values: Mapping[str, Any]) -> Any:
    """A dataset's configuration. Where a setting is a group of settings, a mapping gives them."""
    fields = {field.name: field for field in dataclasses.fields(settings)}
    if unknown := [key for key in values if key not in fields]:
        near = difflib.get_close_matches(unknown[0], fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}"
        raise ValueError(f"no setting {unknown[0]!r}; {hint}")
    grouped = {}
    for key, value in values.items():
        factory: Any = fields[key].default_factory
        default: Any = fields[key].default if factory is dataclasses.MISSING else factory()
        of_its_own = dataclasses.is_dataclass(default) and not isinstance(default, type) and isinstance(value, dict)
        grouped[key] = type(default)(**value) if of_its_own else value
    return settings(**grouped)


def _name(metadata: Mapping[str, Any], dataset: str | None) -> str:
    name = metadata.get("source_dataset") if dataset in (None, "composite") else dataset
    if not name:
        raise ValueError("which dataset? the args name none, and the prompt has no metadata.source_dataset")
    return str(name)


def _problems(name: str, metadata: Mapping[str, Any], dataset: str | None, accept_weakness: bool) -> list[str]:
    """Why a prompt cannot be scored."""
    said = []
    own = metadata.get("source_dataset")
    if dataset not in (None, "composite") and own not in (None, dataset):
        said.append(f"metadata.source_dataset is {own!r}, and args.dataset {dataset!r}")
    if not accept_weakness and (weak := _refusal(name)):
        said.append(weak)
    if missing := [key for key in needs(name) if key not in metadata]:
        listed = ", ".join(f"metadata.{key}" for key in missing)
        said.append(f"{listed} missing; {name} cannot score without. Keep the column `metadata` of the items")
    return said


@cache
def _refusal(name: str) -> str | None:
    if not (weak := weaknesses(name)):
        return None
    return (
        f"{name}: {'; '.join(weak)} (measured with reasoning-gym {measured()['library']}). "
        "Take another dataset, or accept it: args.accept_weakness: true"
    )


def _typed(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with the types that the scorer compares: JSON has no tuples."""
    grids = {key: tuple(map(tuple, metadata[key])) for key in _GRIDS.get(name, ()) if isinstance(metadata.get(key), list)}
    return {**metadata, **grids}


def _refuse_unsound(
    score_of: Callable[..., float], name: str, answer: str | None, entry: Mapping[str, Any], error: Exception
) -> None:
    """Raise where the scorer fails on the reference too: then the item is to blame, and not the completion."""
    if answer is None:
        return
    try:
        score_of(answer=answer, entry=entry)
    except Exception:
        raise ValueError(f"{name} cannot score this item, not even its own answer: {type(error).__name__}: {error}") from None


def _bounded(name: str, score: float) -> Score:
    if not math.isfinite(score):
        return Score(0.0, remark=f"0: {name} gave {score}")
    if not 0 <= score <= 1 + ROUNDING:
        raise ValueError(f"{name} gave {score}, expected a score from 0 to 1")
    return Score(min(score, 1.0))
