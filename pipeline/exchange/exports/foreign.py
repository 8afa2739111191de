"""Rollouts as JSON lines in the form of another tool, which `rollbook import` reads back; and what that form cannot hold."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

from pipeline.common.errors import DataError
from pipeline.common.text import code
from pipeline.exchange.exports import forms as one_a_file
from pipeline.exchange.exports.card import card, origin
from pipeline.exchange.exports.completions import ExportSource
from pipeline.exchange.exports.form import SAMPLING, UNKNOWN, ForeignForm

LEFT_OUT = "_why"
"""Column of rows that the form cannot hold: the reason."""
FOUND = (*SAMPLING, "seed", "finish_reason", "answer", "behavior_logprobs", "action_mask", "reward")
"""Columns that say nothing where they are null."""
SAID = ("policy_id", "policy_version", "engine", "logprobs_mode")
"""Columns that say nothing where they hold `unknown` or 0."""


@dataclass(frozen=True)
class Written:
    """What an export wrote."""

    completions: int
    lost: list[str]
    """What the form cannot hold, a line each."""


@cache
def foreign_forms() -> dict[str, ForeignForm]:
    """Every form by name."""
    names = [found.name for found in pkgutil.iter_modules(one_a_file.__path__)]
    modules = [importlib.import_module(f"{one_a_file.__name__}.{name}") for name in names]
    return {module.FORM.name: module.FORM for module in modules}


def write_foreign(source: ExportSource, directory: Path, form: ForeignForm, min_reward: float | None) -> Written:
    """Write completions, group by group, and a page that says what they are and what is not among them.

    Raises:
        DataError: none is left.
    """
    count, left, there = 0, dict[str, int](), set[str]()
    with (directory / form.file).open("w", encoding="utf-8") as file:
        for frame in source.tables():
            if min_reward is not None:
                frame = frame.filter(pl.col("reward") >= min_reward)
            judged = frame.with_columns(form.refuses.alias(LEFT_OUT))
            for why, rows in judged[LEFT_OUT].drop_nulls().value_counts().iter_rows():
                left[why] = left.get(why, 0) + rows
            kept = judged.filter(pl.col(LEFT_OUT).is_null()).drop(LEFT_OUT)
            there |= _said(kept)
            for _, group in kept.group_by("group_id", maintain_order=True):
                for line in form.lines(group.to_dicts()):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += len(kept)
    if not count:
        raise DataError(f"{source.artifact.url}: nothing to export: {'; '.join(left) or 'no completion has that reward'}")
    lost = _lost(form, there, left, turns=bool(source.rollouts.tables("turns")))
    (directory / "README.md").write_text(_page(source, form, count, lost), encoding="utf-8")
    return Written(count, lost)


def _said(frame: pl.DataFrame) -> set[str]:
    """Columns in which some row says something."""
    parts = [name for name in frame.columns if name.startswith("reward_")]
    found = {name for name in (*FOUND, *parts) if frame[name].null_count() < len(frame)}
    return found | {name for name in SAID if not frame[name].cast(pl.String).is_in([UNKNOWN, "0"]).all()}


def _lost(form: ForeignForm, there: set[str], left: dict[str, int], *, turns: bool) -> list[str]:
    held = {name for name in there if name in form.holds or (name.startswith("reward_") and "reward_*" in form.holds)}
    lines = [f"{rows:,} completions are left out: {why}" for why, rows in sorted(left.items())]
    if not form.tokens:
        lines.append("token ids: the form has texts, which are tokenized again")
    if there - held:
        lines.append(f"columns: {', '.join(sorted(there - held))}")
    if turns:
        lines.append("turns: who spoke, what a turn was given, and how it ended; the mask says which tokens were drawn")
    return [*lines, form.groups]


def _page(source: ExportSource, form: ForeignForm, count: int, lost: list[str]) -> str:
    front = {"pretty_name": f"{form.name} completions from {source.artifact.id[:12]}", "tags": ["rollbook", form.name]}
    parts = [
        f"# {count:,} completions as {form.title}",
        f"`{form.file}` holds them; {code(f'rollbook import DIR --format {form.name} --model MODEL')} reads them back.",
        "What the form cannot hold:\n\n" + "\n".join(f"- {line}" for line in lost),
        "## Where it comes from\n\n" + origin(source.artifact),
        *([origin(source.rollouts)] if source.shaped else []),
    ]
    return card(front, parts)
