"""A learned reward beside the true grader.

Where the first goes on rising while the second falls, the policy has found out what the reward model does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from pipeline.config.reward import RewardComponent
from pipeline.evaluate.estimators import bootstrap_interval
from pipeline.look.report import figures
from pipeline.look.report.colors import SERIES, role_of
from pipeline.look.report.figures import Values
from pipeline.look.report.readings import Readout
from pipeline.look.report.sections import Key, Panel, Section
from pipeline.look.report.verdict import Outcome
from pipeline.run.state import Iteration, Run
from pipeline.store import Artifact, read_table, scan_table
from schemas import Evaluation, Rollouts
from schemas.rollouts import ends_episode

MODELS = frozenset({"reward_model", "judge", "pairwise_judge"})
"""Graders whose scores a model made up: what is learned is right where it was trained, and may be wrong elsewhere."""


@dataclass(frozen=True)
class Graded:
    """What held-out answers earned from one grader, iteration by iteration."""

    name: str
    scores: dict[int, pl.DataFrame]
    """prompt_id and the mean score of its answers, by iteration."""

    @property
    def means(self) -> dict[int, float]:
        """Over prompts, by iteration."""
        return {number: float(_values(frame).mean()) for number, frame in self.scores.items()}

    def points(self, run: Run) -> tuple[Values, Values, Values, Values]:
        """Iterations, means over prompts, and the ends of their 95 % intervals."""
        x = np.array(list(self.scores), float)
        ends = np.array([_interval(_values(frame), run) for frame in self.scores.values()]).reshape(-1, 2)
        return x, np.array(list(self.means.values())), ends[:, 0], ends[:, 1]

    def change(self, first: int, last: int, run: Run) -> Change | None:
        """From one iteration to another, over prompts that both were graded on; None where there are none."""
        if first not in self.scores or last not in self.scores:
            return None
        both = self.scores[first].join(self.scores[last], on="prompt_id", suffix="_after").sort("prompt_id")
        differences = _values(both.select(score=pl.col("score_after") - pl.col("score")))
        return Change(float(differences.mean()), *_interval(differences, run)) if len(both) else None


@dataclass(frozen=True)
class Change:
    """A difference with its 95 % interval."""

    by: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.by:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


def learned_section(run: Run) -> tuple[Section, Outcome] | None:
    """The two side by side, and in words whether they part; None where no reward is learned or nothing checks it."""
    found = beside(run)
    if found is None:
        return None
    learned, true = found
    says = parting(run, learned, true)
    panels = [_panel(run, place, graded) for place, graded in enumerate((learned, *true))]
    about = (
        "What the same held-out answers earned from the model that rewards, and from the grader that checks it: means over "
        "prompts, with bootstrap intervals. The policy is trained on the first and does not see the second."
    )
    return Section("learned-reward", "Learned reward and true grader", about, tuple(panels), notes=(says.says,)), says


def beside(run: Run) -> tuple[Graded, list[Graded]] | None:
    """The learned reward and the true graders of a run, where it has both and some held-out answers are graded."""
    components = run.config.reward.components
    learned = [one for one in components if one.grader in MODELS and one.weight != 0]
    if not learned:
        return None
    checks = [one for one in components if one.grader not in MODELS and one.weight == 0]
    checks += [one for one in components if one.short == run.config.evaluate.solved_by and one not in (*learned, *checks)]
    of_reward = Graded(" + ".join(one.short for one in learned), dict(_of_components(run, learned)))
    graded = [Graded(one.short, dict(_of_components(run, [one]))) for one in checks]
    for one in run.config.evaluate.sets:
        if one.reward and all(component.grader not in MODELS for component in one.reward.components):
            graded.append(Graded(f"set {one.name}", dict(_of_set(run, one.name))))
    graded = [one for one in graded if one.scores]
    return (of_reward, graded) if of_reward.scores and graded else None


def parting(run: Run, learned: Graded, true: list[Graded]) -> Outcome:
    """In words: whether the learned reward rose while a true grader fell.

    They part where between the iteration with the best true score and a later one the first rose and the second fell, each by
    more than the 95 % interval over prompts.
    """
    for grader in true:
        best, last = max(grader.means, key=grader.means.__getitem__), max(grader.scores)
        fell, rose = grader.change(best, last, run), learned.change(best, last, run)
        if fell and rose and fell.high < 0 and rose.low > 0:
            return Outcome(
                f"The learned reward is being gamed: from {_name(best)} to {_name(last)} {learned.name} rose by {rose} while "
                f"{grader.name} fell by {fell}. By the true grader {_name(best)} is the best. Stop there, keep closer to the "
                "reference, or learn the reward anew from what the policy writes now.",
                "down",
            )
    parts = []
    for graded in (learned, *true):
        first, last = min(graded.scores), max(graded.scores)
        change = graded.change(first, last, run) if first < last else None
        went = "was judged once" if change is None else f"{_way(change)} ({change})"
        parts.append(f"{graded.name} {went}")
    return Outcome(f"The learned reward and the true grader have not parted: {'; '.join(parts)}.", "even")


def _way(change: Change) -> str:
    if change.low > 0:
        return "rose"
    return "fell" if change.high < 0 else "is not known to have changed"


def _name(iteration: int) -> str:
    return "the base model" if iteration == 0 else f"iteration {iteration}"


def _interval(values: Values, run: Run) -> tuple[float, float]:
    return bootstrap_interval(values, run.config.evaluate.bootstrap, run.config.seed)


def _of_components(run: Run, components: list[RewardComponent]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Scores of the sampled held-out answers, where they have all of them; several are added up by their weights."""
    for step in run.iterations:
        if step.answers is None:
            continue
        rows = scan_table(step.answers.sampled, Rollouts).filter(ends_episode())
        if {one.column for one in components} <= set(rows.collect_schema().names()):
            weights = [one.weight for one in components] if len(components) > 1 else [1.0]
            score = sum(weight * pl.col(one.column) for weight, one in zip(weights, components, strict=True))
            yield from _by_prompt(step, rows.select("prompt_id", score=score).collect())


def _of_set(run: Run, name: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """Mean rewards of a held-out set with graders of its own."""
    for step in run.iterations:
        judged: Artifact | None = step.sets[name].evaluation if name in step.sets else None
        if judged is not None:
            rows = read_table(judged, Evaluation).filter(pl.col("mode") == "sampled")
            yield from _by_prompt(step, rows.select("prompt_id", score="reward"))


def _by_prompt(step: Iteration, rows: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    found = rows.filter(pl.col("score").is_finite()).group_by("prompt_id").agg(pl.col("score").mean()).sort("prompt_id")
    if len(found):
        yield step.iteration, found


def _values(frame: pl.DataFrame) -> Values:
    return frame["score"].cast(pl.Float64).to_numpy()


def _panel(run: Run, place: int, graded: Graded) -> Panel:
    x, mean, low, high = graded.points(run)
    color = SERIES[min(place, 1)]

    def draw(axes: Axes) -> None:
        figures.points_with_intervals(axes, x, mean, low, high, color)
        figures.whole_numbers(axes, float(x.min()), float(x.max()))

    key = Key(graded.name, role_of(color))
    readings = [Readout(graded.name, key.role, x, mean, low, high)]
    picture = figures.svg(f"learned-{place}", draw, x_label="iteration", readings=readings)
    return Panel("True grader" if place else "Learned reward", "score", picture, "", (key,))
