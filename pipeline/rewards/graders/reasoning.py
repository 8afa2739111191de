"""reasoning_gym: the score that a reasoning-gym dataset gives to the completion."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pipeline.common.errors import UserError
from pipeline.rewards.graders.text import compile_pattern, last_captured


def reasoning_gym(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    dataset: str | None = None,
    extract: str | None = None,
) -> float:
    """What the dataset's `score_answer(answer, entry)` returns for the stripped completion.

    The entry is made of the prompt's question, its answer and its column `metadata` (a struct, or JSON text).

    Args:
        dataset: name of a reasoning-gym dataset, such as countdown. Default: the prompt's metadata.source_dataset.
        extract: regular expression; what its last match captures stands for the completion. Without a match the
            dataset scores a missing answer, which nearly all of them score 0.

    Raises:
        ValueError: no dataset is named, or none of that name is known.
    """
    metadata = prompt.get("metadata") or {}
    if isinstance(metadata, str):
        metadata = json.loads(metadata)
    name = dataset or metadata.get("source_dataset")
    if not name:
        raise ValueError("which dataset? the args name none, and the prompt has no metadata.source_dataset")
    given = completion if extract is None else last_captured(extract, completion)
    entry = {"question": prompt.get("question"), "answer": answer, "metadata": metadata}
    return _scorer(name)(answer=None if given is None else given.strip(), entry=entry)


def check(*, extract: str | None = None, **_: object) -> None:
    if extract is not None:
        compile_pattern("extract", extract)


def prepare(*, dataset: str | None = None, **_: object) -> None:
    """Import the library and build the dataset.

    Raises:
        UserError: reasoning-gym has no such dataset; the message has the nearest name.
    """
    import reasoning_gym  # noqa: F401 - so that the import is not counted as grading

    if dataset is not None:
        try:
            _scorer(dataset)
        except ValueError as error:
            raise UserError(str(error)) from None


@cache
def _scorer(name: str) -> Callable[..., float]:
    from reasoning_gym.factory import DATASETS, get_score_answer_fn

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "the reasoning-gym README lists them"
        raise ValueError(f"reasoning-gym has no dataset {name!r}; {hint}")
    scorer: Callable[..., float] = get_score_answer_fn(name)
    return scorer
