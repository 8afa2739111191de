"""`--algorithms`: names with settings, such as grpo,rec-oneside-nois:low=0.6,high=2.0,reinforce."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError


@dataclass(frozen=True)
class Choice:
    """An algorithm with its settings, and the text that asked for it."""

    label: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)


def parse_choices(texts: Iterable[str], plugins: Sequence[str] = ()) -> tuple[Choice, ...]:
    """Algorithms in the order they are named: built in, or of the user's own files.

    >>> [choice.label for choice in parse_choices(["grpo,rec-oneside-nois:low=0.6,high=2.0", "reinforce"])]
    ['grpo', 'rec-oneside-nois:low=0.6,high=2.0', 'reinforce']

    Raises:
        UserError: none is named, one is named twice, or there is no such algorithm or setting.
    """
    choices = tuple(_choice(label, plugins) for text in texts for label in _labels(text))
    labels = [choice.label for choice in choices]
    if not labels:
        raise UserError("--algorithms: name at least one, such as --algorithms grpo,reinforce; `rollbook algorithms` lists them")
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"--algorithms: {twice} is there twice; give one of them other settings")
    return choices


def _labels(text: str) -> Iterator[str]:
    """Cut at commas, but keep a setting (it has a = and no : before it) with the algorithm it follows."""
    label = ""
    for piece in (piece.strip() for piece in _pieces(text)):
        is_setting = "=" in piece and ":" not in piece.partition("=")[0]
        if is_setting:
            if not label:
                raise UserError(f"--algorithms: {piece} follows no algorithm; write name:{piece}")
            label += f",{piece}" if ":" in label else f":{piece}"
            continue
        if label:
            yield label
        label = piece
    if label:
        yield label


def _pieces(text: str) -> Iterator[str]:
    """Cut at commas outside of brackets.

    >>> list(_pieces("grpo:regularizers=[EntropyBonus,ForwardKL],low=0.1"))
    ['grpo:regularizers=[EntropyBonus,ForwardKL]', 'low=0.1']
    """
    piece, depth = "", 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth <= 0:
            yield piece
            piece = ""
        else:
            piece += character
    yield piece


def _choice(label: str, plugins: Sequence[str]) -> Choice:
    name, _, rest = label.partition(":")
    settings = dict(_setting(label, piece) for piece in _pieces(rest)) if rest else {}
    resolve(name, settings, plugins)
    return Choice(label, name, settings)


def _setting(label: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(
            f"--algorithms: {label}: expected setting=value after the colon, such as {label.partition(':')[0]}:low=0.1"
        )
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--algorithms: {label}: {value!r} is not a value") from None
