"""The turns of episodes as rows beside the rollouts, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.generate.engine import Episode, EpisodeTurn
from schemas import Turns
from schemas.rollouts import ENVIRONMENT_ERROR

FIGURED = ("who", "length", "status")
"""What the figures of turns are made of."""
_COLUMNS = ("start", "length", "who", "name", "reward", "status")


def turns_name(shard: str) -> str:
    """The file of a shard's turns: turns-00000.parquet beside part-00000.parquet."""
    return f"turns-{shard.removeprefix('part-')}"


def turns_beside(shard: Path) -> pl.DataFrame | None:
    """The turns beside a file of rollouts; None if there are none."""
    path = shard.with_name(turns_name(shard.name))
    return pl.read_parquet(path, glob=False) if path.is_file() else None


def turn_rows(episodes: Iterable[tuple[str, int, Episode | None]]) -> pl.DataFrame:
    """Rows of `Turns`: of each completion its group, its number and its turns."""
    rows = [
        (group, sample, number, *(getattr(turn, name) for name in _COLUMNS))
        for group, sample, episode in episodes
        for number, turn in enumerate(episode.turns if episode else ())
    ]
    types = {name: column.dtype for name, column in Turns.columns().items()}
    return pl.DataFrame(rows, schema=types, orient="row")


def episodes_of(turns: pl.DataFrame) -> dict[tuple[str, int], list[EpisodeTurn]]:
    """The turns of each completion, by its group and number."""
    found: dict[tuple[str, int], list[EpisodeTurn]] = {}
    for group, sample, *turn in (
        turns.sort("group_id", "sample_index", "turn").select("group_id", "sample_index", *_COLUMNS).rows()
    ):
        found.setdefault((group, sample), []).append(EpisodeTurn(*turn))
    return found


def episode_of(row: dict[str, Any], turns: list[EpisodeTurn]) -> Episode:
    """The episode of a row of `Rollouts`."""
    mask = row["action_mask"]
    drawn = [True] * len(row["completion_token_ids"]) if mask is None else mask
    return Episode(tuple(drawn), tuple(turns), row["error"] if row["status"] == ENVIRONMENT_ERROR else None)


def turn_figures(files: Sequence[Path]) -> dict[str, Any]:
    """Figures of all turns, as the summary of an artifact of episodes has them: {} if there are no turns.

    Args:
        files: of the table.
    """
    return {"episodes": figures_of(pl.scan_parquet(list(files), glob=False).select(*FIGURED).collect())} if files else {}


def figures_of(turns: pl.DataFrame) -> dict[str, Any]:
    """
    Args:
        turns: `FIGURED` of all rows.
    """
    drawn, tools = turns.filter(pl.col("who") == "policy"), turns.filter(pl.col("who") == "tool")
    return {
        "turns": len(drawn),
        "calls": len(tools),
        "tool_errors": int((tools["status"] == "tool_error").sum()),
        "drawn_tokens": int(drawn["length"].sum()),
        "given_tokens": int(turns["length"].sum()) - int(drawn["length"].sum()),
        "turn_statuses": dict(drawn.group_by("status").len().sort("status").iter_rows()),
    }


def episode_rewards(turns: pl.DataFrame) -> dict[tuple[str, int], float | None]:
    """The reward of each episode, by its group and number; see `Episode.reward`."""
    return {key: Episode((), tuple(several)).reward for key, several in episodes_of(turns).items()}
