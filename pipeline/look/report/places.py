"""Where rewarded answers stood, by the remarks of math_verify: what a policy is paid for that marks no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from pipeline.common.text import percent
from pipeline.config.reward import RewardConfig
from pipeline.look.report import figures
from pipeline.look.report.colors import MUTED, RAMP, SERIES, role_of
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Key, Panel
from pipeline.rewards.graders.maths.reading import EXTRACT, MARKS, NOWHERE, NUMBER, WHOLE
from pipeline.run.state import Run
from pipeline.store import Artifact, scan_table
from schemas import Remarks, Rollouts

PLACES = (*MARKS, EXTRACT, WHOLE, NUMBER, NOWHERE)
"""Places as remarks name them, those that mark an answer first."""
UNMARKED = (WHOLE, NUMBER, NOWHERE)
COLORS = dict(zip(PLACES, (*(SERIES[n] for n in (0, 2, 3, 5, 4)), RAMP[2], SERIES[1], MUTED), strict=True))


@dataclass(frozen=True)
class PlaceRewards:
    """Rewards of one iteration's rollouts by the place of their answer."""

    means: Mapping[str, float]
    """Mean reward of the completions whose answer stood there; of places that occur."""
    shares: Mapping[str, float]
    """Share of all positive reward; {} where there is none."""

    @property
    def unmarked(self) -> float | None:
        """Share of the reward that came from completions without a marked answer."""
        return sum(share for place, share in self.shares.items() if place in UNMARKED) if self.shares else None


def place_panels(run: Run) -> list[Panel]:
    """What share of the reward came from where, and what answers earned there; [] where no grader says where it read."""
    column = places_column(run.config.reward)
    rollouts = {step.iteration: step.answers.rollouts for step in run.iterations if step.answers and step.answers.rollouts}
    if column is None:
        return []
    found = {number: place_rewards(artifact, column) for number, artifact in rollouts.items() if artifact.tables("remarks")}
    found = {number: rewards for number, rewards in found.items() if rewards.means}
    paid = {number: rewards for number, rewards in found.items() if rewards.shares}
    return [*([_shares_panel(paid)] if paid else []), *([_means_panel(found)] if found else [])]


def places_column(config: RewardConfig) -> str | None:
    """The component whose remarks begin with a place: the first math_verify that reads one answer."""
    read = (c for c in config.components if c.grader == "math_verify" and c.args.get("reading", "one") == "one")
    return next((component.column for component in read), None)


def place_rewards(rollouts: Artifact, column: str) -> PlaceRewards:
    """Rewards by place. Completions without a reward, or of which the grader said no place, do not count."""
    scalars = scan_table(rollouts, Rollouts).select("group_id", "sample_index", "reward").drop_nulls()
    place = pl.col("text").str.extract(rf"^({'|'.join(PLACES)})(?:: |$)")
    said = scan_table(rollouts, Remarks).filter(pl.col("component") == column)
    places = said.select("group_id", "sample_index", place=place).drop_nulls()
    by_place = scalars.join(places, on=["group_id", "sample_index"]).group_by("place")
    counts = by_place.agg(mean=pl.col("reward").mean(), paid=pl.col("reward").clip(0).sum()).collect(engine="streaming")
    rows = {row["place"]: row for row in counts.iter_rows(named=True)}
    total = sum(row["paid"] for row in rows.values())
    there = [place for place in PLACES if place in rows]
    return PlaceRewards(
        {place: rows[place]["mean"] for place in there}, {place: rows[place]["paid"] / total for place in there} if total else {}
    )


def _shares_panel(found: Mapping[int, PlaceRewards]) -> Panel:
    names = [place for place in PLACES if any(rewards.shares.get(place) for rewards in found.values())]
    chosen = [COLORS[name] for name in names]
    x = np.array(list(found), dtype=float)
    parts = [100 * np.array([rewards.shares.get(name, 0.0) for rewards in found.values()]) for name in names]
    picture = figures.bars("reward-places", x, parts, chosen, names, unit=" %")
    first, last = found[min(found)], found[max(found)]
    caption = (
        f"Reward by where the answer stood. Completions without a marked answer (whole, number, none) brought "
        f"{percent(first.unmarked)} of it at first, {percent(last.unmarked)} at last. A share that grows may be earned in a way "
        "that nobody meant."
    )
    keys = tuple(Key(name, role_of(color)) for name, color in zip(names, chosen, strict=True))
    return Panel("Where the reward came from", "% of the reward", picture, caption, keys)


def _means_panel(found: Mapping[int, PlaceRewards]) -> Panel:
    names = [place for place in PLACES if any(place in rewards.means for rewards in found.values())]
    chosen = [COLORS[name] for name in names]
    x = np.array(list(found), dtype=float)
    means: dict[str, Values] = {
        name: np.array([rewards.means.get(name, np.nan) for rewards in found.values()], dtype=float) for name in names
    }

    def draw(axes: Axes) -> None:
        for values, color in zip(means.values(), chosen, strict=True):
            figures.line(axes, x, values, color)
        figures.whole_numbers(axes, float(x.min()), float(x.max()))

    keys = tuple(Key(name, role_of(color)) for name, color in zip(names, chosen, strict=True))
    caption = "Mean reward of the training rollouts by where math_verify read their answer."
    readings = [Readout(key.label, key.role, x, means[key.label]) for key in keys]
    picture = figures.svg("places", draw, x_label="iteration", readings=readings)
    return Panel("Reward by place of the answer", "mean", picture, caption, keys)
