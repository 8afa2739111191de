"""Completions of rollouts artifacts, chosen by a query. Tokens are read of the chosen ones only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from pipeline.algorithms.cells.density import mean_logprob
from pipeline.common.errors import UserError
from pipeline.common.lengths import length
from pipeline.look.show.query import Query
from pipeline.look.show.reading import read
from pipeline.look.show.subject import Subject, artifacts_in, store_around
from pipeline.look.turns import ShownTurn, turns_of
from pipeline.run.state import Iteration
from pipeline.store import Artifact, scan_table
from schemas import Revisions, Rollouts, Shaped

KEY = ["group_id", "sample_index"]
SETS = ("rollouts", "sampled", "greedy", "revised")
"""Of a run's iteration."""
COMPLETIONS = ("rollouts", "revisions")
"""Kinds of artifacts that completions are in."""
ROLES = ["role", "change", "said", "note"]
"""Columns of `Revisions` that are shown."""
_SCALARS = ["prompt_id", "reward", "status", "finish_reason", "policy_version"]
_WHOLE = ["prompt_text", "completion_text", "answer", "error", "completion_token_ids", "behavior_logprobs", "action_mask"]


@dataclass(frozen=True)
class ShownRollouts:
    """One rollouts artifact, with what belongs to it."""

    rollouts: Artifact
    name: str
    """rollouts, sampled, greedy or revised; else the beginning of its id."""
    shaped: Artifact | None = None
    policy: Artifact | None = None
    """The checkpoint that answered, for its tokenizer."""
    note: str | None = None
    """Why there are no advantages."""


@dataclass(frozen=True)
class Completion:
    """One row, with what the list shows of it and its tokens."""

    row: dict[str, Any]
    """Columns of the rollouts, `advantage`, `tokens` (how many) and `logprob` (the mean of those that were drawn). Of revisions
    `role`, `change`, `said` and `note` too, see `schemas.Revisions`."""
    answers: ShownRollouts
    turns: tuple[ShownTurn, ...] = ()
    """Of an episode."""


@dataclass(frozen=True)
class Selection:
    """What a query found."""

    shown: tuple[Completion, ...]
    matched: int
    there: int
    """Completions that were looked at."""
    reward_mean: float | None
    """Of those that matched."""


def answers_of(place: Subject, names: Sequence[str], shaped: Artifact | None = None) -> list[ShownRollouts]:
    """The rollouts of a place.

    Args:
        names: of the sets of a run's iteration; none for its training rollouts.
        shaped: whose advantages are shown, in place of those that the place has.

    Raises:
        UserError: there are none, or the shaped table is not of them.
    """
    if place.run is not None:
        found = []
        for step in place.run.iterations:
            for name in names or ("rollouts",):
                if (part := set_of(step, name)) is not None:
                    is_trained_on = part is step.trained_on
                    found.append(
                        ShownRollouts(part, name, step.shaped if is_trained_on else None, step.policy, _note(step, name))
                    )
    else:
        found = [_alone(use.artifact) for use in place.uses if use.artifact.kind in COMPLETIONS]
    if not found:
        raise UserError(f"{place.url}: no completions there yet")
    if shaped is None:
        return found
    parents = {parent.id for parent in shaped.manifest.content.parents}
    if shaped.kind != "shaped" or not any(part.rollouts.id in parents for part in found):
        raise UserError(f"--shaped {shaped.url}: a {shaped.kind} artifact, and not one that was made from these rollouts")
    return [replace(part, shaped=shaped, note=None) if part.rollouts.id in parents else part for part in found]


def set_of(step: Iteration, name: str) -> Artifact | None:
    """One of the `SETS` of a run's iteration, if it is there."""
    if name == "revised":
        return step.revised
    found: Artifact | None = getattr(step.answers, name) if step.answers else None
    return found


def _note(step: Iteration, name: str) -> str | None:
    """Why training rollouts have no advantages."""
    if name != "rollouts" or step.revised is None:
        return None
    return f"no advantages in iteration {step.iteration}: an expert's revisions of these were trained on (--of revised)"


def _alone(rollouts: Artifact) -> ShownRollouts:
    """A rollouts artifact with what its store has of it. Of several shaped tables none is taken: they differ."""
    store = store_around(rollouts)
    shaped = [table for table in artifacts_in(store, "shaped") if rollouts.id in {p.id for p in table.manifest.content.parents}]
    by = {parent.id for parent in rollouts.manifest.content.parents if parent.role == "policy"}
    policy = next((checkpoint for checkpoint in artifacts_in(store, "checkpoint") if checkpoint.id in by), None)
    note = None
    if len(shaped) > 1:
        note = f"no advantages: {len(shaped)} shaped tables were made from {rollouts.id[:8]}; name one with --shaped"
    purpose = "revised" if rollouts.kind == "revisions" else rollouts.recipe.get("purpose")
    name = "rollouts" if purpose == "train" else str(purpose or rollouts.id[:8])
    return ShownRollouts(rollouts, name, shaped[0] if len(shaped) == 1 else None, policy, note)


def select(answers: Iterable[ShownRollouts], query: Query) -> Selection:
    """The completions that a query asks for, in its order.

    Raises:
        UserError: a filter that cannot be understood.
        DataError, IntegrityError: a table cannot be read.
    """
    parts = list(answers)
    found = pl.concat([_scalars(part, number, query) for number, part in enumerate(parts)], how="vertical")
    there = sum(int(part.rollouts.summary.get("completions", 0)) for part in parts)
    if order := query.order():
        found = found.sort(order[0], descending=order[1], nulls_last=True, maintain_order=True)
    shown = (found.unique(["part", "group_id"], keep="first", maintain_order=True) if query.one_each else found).head(query.rows)
    by_key: dict[tuple[Any, ...], Completion] = {}
    for (number,), keys in shown.group_by("part"):
        part = parts[int(number)]
        turns = turns_of(part.rollouts, keys, part.shaped)
        for row in _whole(part, keys):
            key = row["group_id"], row["sample_index"]
            by_key[number, *key] = Completion(row, part, tuple(turns.get(key, ())))
    mean = found["reward"].mean()
    return Selection(
        shown=tuple(by_key[key] for key in shown.select("part", *KEY).iter_rows()),
        matched=len(found),
        there=there,
        reward_mean=float(mean) if isinstance(mean, float) else None,
    )


def _scalars(part: ShownRollouts, number: int, query: Query) -> pl.DataFrame:
    """What filters and orders need, of the completions that match: key, reward, advantage, tokens, logprob, part."""
    rows = scan_table(part.rollouts, Rollouts).filter(query.filter())
    rows = rows.select(
        *KEY,
        *_SCALARS,
        tokens=length("completion_token_ids"),
        logprob=mean_logprob().cast(pl.Float64),
        part=pl.lit(number),
    )
    return _with_advantage(read(rows, part.rollouts), part)


def _with_advantage(rows: pl.DataFrame, part: ShownRollouts) -> pl.DataFrame:
    if part.shaped is None:
        return rows.with_columns(advantage=pl.lit(None, dtype=pl.Float32))
    advantages = read(scan_table(part.shaped, Shaped).select(*KEY, "advantage"), part.shaped)
    return rows.join(advantages, on=KEY, how="left", maintain_order="left")


def _whole(part: ShownRollouts, keys: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of some keys with their texts and tokens."""
    rows = scan_table(part.rollouts, Rollouts)
    extra = [name for name in rows.collect_schema().names() if Rollouts.is_extra(name)]
    columns = rows.select(*KEY, *_WHOLE, *extra).join(keys.lazy().select(KEY), on=KEY, how="semi")
    found = keys.join(read(columns, part.rollouts), on=KEY, how="inner")
    return with_roles(found, part.rollouts).to_dicts()


def with_roles(rows: pl.DataFrame, rollouts: Artifact) -> pl.DataFrame:
    """Rows of revisions with `ROLES`: whose each is, and what was changed; of rollouts as they are."""
    if rollouts.kind != "revisions":
        return rows
    roles = scan_table(rollouts, Revisions).select(*KEY, *ROLES).join(rows.lazy().select(KEY), on=KEY, how="semi")
    return rows.join(read(roles, rollouts), on=KEY, how="left", maintain_order="left")


def described_role(row: Mapping[str, Any]) -> str | None:
    """Whose a completion of revisions is, in words; None of rollouts.

    >>> described_role({"role": "revised", "change": 0.17, "note": None})
    'revised, 17% changed'
    """
    if row.get("role") is None:
        return None
    change = "" if row["change"] is None else f", {row['change']:.0%} changed"
    note = "" if row["note"] is None else f", not revised: {row['note']}"
    return f"{row['role']}{change}{note}"
