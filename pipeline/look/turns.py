"""The turns of episodes that are looked at: who spoke, what came of it, and where in the tokens."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import polars as pl

from pipeline.common.text import number
from pipeline.generate.engine import EpisodeTurn
from pipeline.generate.turns import episodes_of
from pipeline.store import Artifact, scan_table
from schemas import Credits, Turns

MOST_NAME = 60
"""Characters of a tool's name that are shown."""


@dataclass(frozen=True, slots=True)
class ShownTurn(EpisodeTurn):
    """A turn, and what it earned where advantages or masks are of turns."""

    advantage: float | None = None
    """Its own, of `schemas.Credits`; None where it has none."""
    keep: bool | None = None
    """Whether its tokens carry a loss; None where that is not told turn by turn."""


def turns_of(rollouts: Artifact, keys: pl.DataFrame, shaped: Artifact | None = None) -> dict[tuple[str, int], list[ShownTurn]]:
    """The turns of some completions, by group and number; {} where no environment took part.

    Args:
        keys: group_id and sample_index.
        shaped: the table with their advantages, if there is one.
    """
    if not any(file.table == f"{Turns.title()}/{Turns.version}" for file in rollouts.files):
        return {}
    wanted = keys.lazy().select("group_id", "sample_index")
    found = scan_table(rollouts, Turns).join(wanted, on=("group_id", "sample_index"), how="semi")
    earned = _credits(shaped, wanted)
    return {
        key: [ShownTurn(*astuple(turn), *earned.get((*key, number), ())) for number, turn in enumerate(turns)]
        for key, turns in episodes_of(found.collect(engine="streaming")).items()
    }


def has_credits(shaped: Artifact | None) -> bool:
    """Whether turns have advantages or masks of their own."""
    return shaped is not None and any(file.table == f"{Credits.title()}/{Credits.version}" for file in shaped.files)


def _credits(shaped: Artifact | None, wanted: pl.LazyFrame) -> dict[tuple[str, int, int], tuple[float, bool]]:
    """Advantage and keep of each turn of the policy, by group, number and turn."""
    if shaped is None or not has_credits(shaped):
        return {}
    rows = scan_table(shaped, Credits).join(wanted, on=("group_id", "sample_index"), how="semi")
    columns = rows.select("group_id", "sample_index", "turn", "advantage", "keep")
    return {(group, sample, turn): (own, keep) for group, sample, turn, own, keep in columns.collect(engine="streaming").rows()}


def label(turn: ShownTurn) -> str:
    """Who spoke, and what came of it, as a line. The name is what somebody else wrote.

    >>> label(ShownTurn(0, 5, "tool", "calculator", status="tool_error"))
    'tool calculator, tool_error'
    >>> label(ShownTurn(0, 5, "policy", reward=0.5, advantage=0.75, keep=True))
    'policy, reward 0.5, advantage +0.75'
    >>> label(ShownTurn(0, 5, "policy", status="void", advantage=0.0, keep=False))
    'policy, void, carries no loss'
    """
    who = f"{turn.who} {' '.join(turn.name.split())[:MOST_NAME]}" if turn.name else turn.who
    reward = [f"reward {number(turn.reward)}"] if turn.reward is not None else []
    status = [turn.status] if turn.status != "ok" else []
    earned = [f"advantage {turn.advantage:+.3g}"] if turn.keep else ["carries no loss"] if turn.keep is False else []
    return ", ".join([who, *reward, *status, *earned])
