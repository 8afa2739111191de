"""Rewards graded again: by built-in graders, which give equal completions equal scores, in processes of their own.

Graders of the user's own are code, which an audit does not run, and a judge may answer otherwise each time. A reward model or a
file of labels is used if it lies where it lay, and its hash is the recipe's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.generate.turns import episode_rewards, turns_name
from pipeline.look.audit.deep.rerun import CannotRerun
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.rows import Share, open_table
from pipeline.look.audit.world import World
from pipeline.regrade.rows import items_of, of_last_rows
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import ASKED_ANEW, BATCHED, BUILTINS, source_hash, version_of
from schemas import Prompts, Turns
from schemas.manifest import File
from schemas.rollouts import ends_episode

MOST = 20_000
"""Completions of an artifact that are graded again, spread over all of it in whole groups."""
ROUNDING = {"float32": 1e-4, "bfloat16": 0.1}
"""Difference of a reward model's scores, relative to their size, that another machine or batch may make."""
REMEDY = "Have the completions graded anew by their run."
GIVEN = ("group_id", "sample_index", "prompt_id", "prompt_text", "completion_text", "answer", "status", "finish_reason")


def check_rewards(held: Held, world: World) -> tuple[int, int] | None:
    """Report components that the graders now give another score. Returns how many completions were graded, of how many.

    None if the artifact's recipe names no graders: its rewards are those of its source.

    Raises:
        CannotRerun: none of its graders can be used again, or its prompts are not here whole; says why.
    """
    stated = held.recipe.get("reward")
    if not stated:
        return None
    components = _usable(held, world, stated)
    prompts, graded, total = prompts_of(held, world), 0, 0
    tolerances = {c.column: ROUNDING[c.args.get("dtype", "float32")] for c in components if c.grader == "reward_model"}
    every = max(1, -(-sum(file.rows or 0 for file in held.tables("rollouts")) // MOST))
    with RewardPool(RewardConfig(components=tuple(components), workers=1)) as pool:
        for file in held.tables("rollouts"):
            rows = _rows(held, world, file)
            total += len(rows)
            groups = rows["group_id"].rle_id()
            rows = rows.filter(groups % every == 0)
            ends = rows.filter(ends_episode())
            items = list(items_of(ends.with_columns(group_id="given"), prompts, _episode_rewards(held, world, file, rows)))
            for row, result in zip(ends.iter_rows(named=True), pool.submit(items).result(), strict=True):
                if row["status"] in ("ok", "truncated"):
                    graded += 1
                    _compare(held, world, file.path, row, result.components, result.error, tolerances)
    return graded, total


def _usable(held: Held, world: World, stated: list[Mapping[str, Any]]) -> list[RewardComponent]:
    """Graders that give the same scores again. Those that cannot are noted, unless there is no other."""
    usable, reasons = [], []
    for component in stated:
        try:
            usable.append(_as_it_was(held, world, component))
        except (CannotRerun, UserError, ValidationError) as error:
            reasons.append(f"{component.get('grader')}: {' '.join(str(error).split())}")
    if not usable:
        raise CannotRerun("; ".join(reasons))
    for reason in reasons:
        said: dict[str, Any] = {"expected": "rewards graded again", "found": f"not done: {reason}"}
        held.spot(world.ledger).note("derivation", "not recomputed", **said, remedy="Nothing else says that it is wrong.")
    return usable


def _as_it_was(held: Held, world: World, stated: Mapping[str, Any]) -> RewardComponent:
    """A component with the places of its files, if they hold what they held."""
    if stated["grader"] not in BUILTINS:
        raise CannotRerun("it is the user's own, and an audit runs no code that comes with the data")
    if stated["grader"] in ASKED_ANEW:
        raise CannotRerun("a judge may answer otherwise each time")
    then, now = stated.get("version", 1), version_of(stated["grader"])
    if then != now:
        raise CannotRerun(f"version {then} of the grader gave these, and this is version {now}")
    fields = {name: value for name, value in stated.items() if name not in ("source", "version")}
    component = RewardComponent.model_validate(fields)
    if component.grader not in BATCHED:
        return component
    if "group_id" in str(component.args.get("by", "group_id")) and _regraded(held) and _graded(held, world) is None:
        raise CannotRerun("its labels are found by the groups of the graded artifact, which is not here whole")
    places = (held.manifest.provenance.notes.get("graders") or {}).get(component.column) or {}
    path = places.get("path")
    if not isinstance(path, str) or not Path(path).exists():
        raise CannotRerun(f"its {'model' if component.grader == 'reward_model' else 'file'} is not here: {path}")
    component = RewardComponent.model_validate({**fields, "args": {**component.args, "path": path}})
    if source_hash(component) != stated.get("source"):
        raise CannotRerun(f"{path} is not what it was: its hash is not the recipe's")
    return component


def _regraded(held: Held) -> bool:
    return any(parent.role == "graded" for parent in held.manifest.content.parents)


def _graded(held: Held, world: World) -> Held | None:
    """The artifact whose completions were graded, if it is here whole."""
    parent = world.shelf.parent(held, "graded")
    return parent if parent is not None and world.intact(parent) else None


def _rows(held: Held, world: World, file: File) -> pl.DataFrame:
    """A file's rows without tokens: what graders are given, and the scores. `given` is the group's name at the time."""
    opened = open_table(held, file, held.spot(world.ledger, file.path), Share(everything=True))
    if opened is None:
        return pl.DataFrame(schema=dict.fromkeys(("row", "given", *GIVEN), pl.String))
    names = [name for name in opened.parquet.schema_arrow.names if name in GIVEN or name.startswith("reward_")]
    parts = [batch.frame.with_row_index("row", batch.first) for batch in opened.batches(names)]
    rows = pl.concat(parts)
    graded = _graded(held, world)
    path = world.read(graded, file.path) if graded else None
    if path is None:
        return rows.with_columns(given=pl.col("group_id"))
    return rows.with_columns(given=pl.read_parquet(path, columns=["group_id"], glob=False)["group_id"].gather(rows["row"]))


def _episode_rewards(held: Held, world: World, file: File, rows: pl.DataFrame) -> dict[tuple[str, int], float | None]:
    """What the environment gave for episodes, by the names that graders are told."""
    turns = next((one for one in held.tables(Turns.title()) if one.path == turns_name(file.path)), None)
    path = world.read(held, turns.path) if turns else None
    if path is None:
        return {}
    found = episode_rewards(of_last_rows(pl.read_parquet(path, glob=False), rows))
    return {(given, sample): found.get((group, sample)) for given, group, sample in rows.select("given", *GIVEN[:2]).rows()}


def _compare(
    held: Held,
    world: World,
    file: str,
    row: Mapping[str, Any],
    scores: Mapping[str, float | None],
    error: str | None,
    tolerances: Mapping[str, float],
) -> None:
    for column, score in scores.items():
        if column not in row or row[column] == score:
            continue
        found = row[column] if score is not None else f"{row[column]}; now the grader fails: {error}"
        severity: Any = "unknown" if score is None else "error"
        if score is not None and row[column] is not None and column in tolerances:
            near = math.isclose(row[column], score, rel_tol=tolerances[column], abs_tol=tolerances[column])
            severity = "note" if near else "error"
        held.spot(world.ledger, file).report(
            severity,
            "derivation",
            "reward",
            expected="the score that the grader gives",
            found=f"{found}, graded again {score}",
            remedy=REMEDY,
            row=row["row"],
            column=column,
        )


def prompts_of(held: Held, world: World) -> dict[str, dict[str, Any]]:
    """What graders are given of each prompt, by its id. Empty of an import: its graders were given what the rows have."""
    if all(parent.role != "prompts" for parent in held.manifest.content.parents):
        return {}
    parent = world.shelf.parent(held, "prompts")
    if parent is None or not world.intact(parent):
        raise CannotRerun("its prompts are not here whole")
    return {row["prompt_id"]: row for row in _prompt_rows(parent, world)}


def _prompt_rows(parent: Held, world: World) -> Iterator[dict[str, Any]]:
    frame = world.columns(parent, Prompts, {name: pl.col(name) for name in Prompts.columns()})
    for row in () if frame is None else frame.drop("row", "file").iter_rows(named=True):
        yield {**row, "metadata": json.loads(row["metadata"]) if row["metadata"] else {}}
