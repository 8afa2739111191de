"""What a comparison came to, in words."""

from __future__ import annotations

from typing import Any

from pipeline.common.text import interval
from pipeline.look.report.comparison_data import Compared
from pipeline.look.report.comparison_table import ends
from pipeline.look.report.verdict import Outcome


def ranking_verdict(compared: Compared) -> Outcome:
    """Who leads, by how much, and whether that may be chance.

    The lead is over each other algorithm, prompt by prompt; where the interval of one of them holds 0, it may be as good. Where a
    baseline was trained, which algorithms beat it.
    """
    found = _lead(compared)
    return Outcome(f"{found.says}{_over_baseline(compared)}", found.way)


def _over_baseline(compared: Compared) -> str:
    """Which algorithms are better than imitation of the best completions, by more than the interval over prompts."""
    baseline = compared.artifact.recipe.get("baseline")
    others = [row for row in compared.ranking if row["label"] != baseline and row["pass_at_1"] is not None]
    against = [(row["label"], row["over_baseline_low"]) for row in others if row.get("over_baseline_low") is not None]
    if baseline is None or not against:
        return ""
    better = [label for label, low in against if low > 0]
    if not better:
        return f" Nothing is known to be better than {baseline}, SFT on each group's best."
    which = "all others" if len(better) == len(against) > 1 else ", ".join(better)
    return f" Better than {baseline}, SFT on each group's best: {which}."


def _lead(compared: Compared) -> Outcome:
    judged = [row for row in compared.ranking if row["pass_at_1"] is not None]
    if not judged:
        return Outcome("Nothing was judged: every trial failed.", "even")
    best, *others = judged
    gain = _points(best, "gain")
    says = f"{best['label']} has a held-out pass@1 of {interval(*ends(best, 'pass_at_1'))}"
    says += f", {gain} over the policy before training." if gain else "."
    if not others:
        return Outcome(says, _way(best))
    alike = [row["label"] for row in others if (low := row.get("behind_low")) is None or low <= 0]
    if alike:
        named = (
            alike[0]
            if len(alike) == 1
            else f"{', '.join(alike[:-1])} and {alike[-1]}"
            if len(alike) < 4
            else f"{len(alike)} others"
        )
        return Outcome(f"{says} It comes first, but that may be chance: {named} may be as good.", "even")
    return Outcome(f"{says} It leads: the next, {others[0]['label']}, is {_points(others[0], 'behind', '')} behind.", _way(best))


def _way(row: dict[str, Any]) -> str:
    low, high = row.get("gain_low"), row.get("gain_high")
    return "up" if low is not None and low > 0 else "down" if high is not None and high < 0 else "even"


def _points(row: dict[str, Any], name: str, sign: str = "+") -> str:
    """A difference with its interval in points; empty where it was not measured."""
    value, low, high = ends(row, name)
    if value is None or low is None or high is None:
        return ""
    return f"{100 * value:{sign}.1f} points [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
