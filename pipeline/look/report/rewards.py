"""Distribution of rewards, counted lazily over one scalar column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from pipeline.look.report.figures import Values
from pipeline.store import Artifact, scan_table
from schemas import Rollouts
from schemas.rollouts import ends_episode

CLASSES = 6
"""Most classes a distribution is cut into; that many different rewards are shown as they are."""


@dataclass(frozen=True)
class RewardShares:
    """Shares of reward classes per iteration."""

    iterations: Values
    labels: tuple[str, ...]
    """Classes from the lowest reward to the highest."""
    shares: Values
    """[class, iteration]; each iteration adds up to 1."""


def reward_shares(rollouts: Mapping[int, Artifact | None]) -> RewardShares | None:
    """Shares of each reward value or, where there are more than CLASSES, of ranges that are equally wide.

    The ranges divide the span between the 1 % and 99 % quantiles of all rewards; the outer two are open.

    Args:
        rollouts: training rollouts by iteration.

    Returns:
        None if no rollout has a reward.
    """
    counts = [_counts(iteration, artifact) for iteration, artifact in rollouts.items() if artifact is not None]
    counts = [frame for frame in counts if not frame.is_empty()]
    if not counts:
        return None
    frame = pl.concat(counts)
    values = frame["reward"].unique().sort()
    if len(values) <= CLASSES:
        labels = tuple(f"{value:g}" for value in values)
        places = np.searchsorted(values.to_numpy(), frame["reward"].to_numpy())
    else:
        edges = _edges(frame)
        inner = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
        labels = (f"below {edges[0]:.3g}", *inner, f"{edges[-1]:.3g} and above")
        places = np.searchsorted(edges, frame["reward"].to_numpy(), side="right")
    iterations = frame["iteration"].unique().sort().to_numpy()
    table = np.zeros((len(labels), len(iterations)))
    np.add.at(table, (places, np.searchsorted(iterations, frame["iteration"].to_numpy())), frame["rows"].to_numpy())
    return RewardShares(iterations.astype(float), labels, table / table.sum(axis=0))


def _counts(iteration: int, artifact: Artifact) -> pl.DataFrame:
    """How often each reward occurs."""
    rewards = scan_table(artifact, Rollouts).filter(ends_episode()).select("reward").drop_nulls()
    counts = rewards.filter(pl.col("reward").is_finite()).group_by("reward").agg(rows=pl.len())
    return counts.collect(engine="streaming").with_columns(iteration=pl.lit(iteration)).sort("reward")


def _edges(frame: pl.DataFrame) -> Values:
    """The borders between ranges: CLASSES - 1 of them."""
    totals = frame.group_by("reward").agg(pl.col("rows").sum()).sort("reward")
    reached = totals["rows"].cum_sum().to_numpy() / totals["rows"].sum()
    values = totals["reward"].to_numpy()
    low, high = values[np.searchsorted(reached, 0.01)], values[np.searchsorted(reached, 0.99)]
    if low == high:
        low, high = values[0], values[-1]
    return np.asarray(np.linspace(low, high, CLASSES + 1)[1:-1], dtype=float)
