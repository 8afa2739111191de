"""The turns of episodes that are looked at: who spoke, what came of it, and where in the tokens."""

from __future__ import annotations

import polars as pl

from pipeline.common.text import number
from pipeline.generate.engine import EpisodeTurn
from pipeline.generate.turns import episodes_of
from pipeline.store import Artifact, scan_table
from schemas import Turns

MOST_NAME = 60
"""Characters of a tool's name that are shown."""


def turns_of(rollouts: Artifact, keys: pl.DataFrame) -> dict[tuple[str, int], list[EpisodeTurn]]:
    """The turns of some completions, by group and number; {} where no environment took part.

    Args:
        keys: group_id and sample_index.
    """
    if not any(file.table == f"{Turns.title()}/{Turns.version}" for file in rollouts.files):
        return {}
    wanted = keys.lazy().select("group_id", "sample_index")
    found = scan_table(rollouts, Turns).join(wanted, on=("group_id", "sample_index"), how="semi")
    return episodes_of(found.collect(engine="streaming"))


def label(turn: EpisodeTurn) -> str:
    """Who spoke, and what came of it, as a line. The name is what somebody else wrote.

    >>> label(EpisodeTurn(0, 5, "tool", "calculator", status="tool_error"))
    'tool calculator, tool_error'
    >>> label(EpisodeTurn(0, 5, "policy", reward=0.5))
    'policy, reward 0.5'
    """
    who = f"{turn.who} {' '.join(turn.name.split())[:MOST_NAME]}" if turn.name else turn.who
    reward = [f"reward {number(turn.reward)}"] if turn.reward is not None else []
    return ", ".join([who, *reward, *([turn.status] if turn.status != "ok" else [])])
