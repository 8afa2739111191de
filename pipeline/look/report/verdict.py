"""What a run came to, in words."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.common.text import percent
from pipeline.compare.ranking import solved_rates
from pipeline.evaluate.estimators import bootstrap_interval
from pipeline.run.state import Iteration, Run
from pipeline.run.stopping import best_of, pass_at_1


@dataclass(frozen=True)
class Outcome:
    """A sentence or two, and which way they point."""

    says: str
    way: str
    """up, down, or even where nothing is known to have changed."""


def verdict(run: Run) -> Outcome:
    """The gain in held-out pass@1 from the first evaluation to the last, with its interval.

    Both policies answer the same prompts, so the difference is taken prompt by prompt: gain = mean of p_last - p_first, with p a
    prompt's share of solved samples and a 95 % bootstrap interval over prompts.
    """
    judged = [step for step in run.iterations if pass_at_1(step) is not None]
    if not judged:
        return Outcome("Not judged yet: no held-out pass@1 has been evaluated.", "even")
    first, last = judged[0], judged[-1]
    if first is last:
        return Outcome(f"Not judged yet: only {_policy(first)} is evaluated, with a pass@1 of {_share(first)}.", "even")
    says, way = _change(run, first, last)
    best = best_of(run)
    is_higher = best is not None and best is not last and (pass_at_1(best) or 0) > (pass_at_1(last) or 0)
    if best is not None and is_higher and way != "down":
        says += f" It was higher after iteration {best.iteration}: {_share(best)}."
    elif best is not None and is_higher:
        says += f" It was best with {_policy(best)}: {_share(best)}."
    return Outcome(says, way)


def _change(run: Run, first: Iteration, last: Iteration) -> tuple[str, str]:
    """The sentence, and which way it points."""
    before, after = (solved_rates(step.evaluation) for step in (first, last) if step.evaluation)
    span = f"from {_share(first)} with {_policy(first)} to {_share(last)} after iteration {last.iteration}"
    if len(before) != len(after):
        return f"Held-out pass@1 went {span}, over different prompts.", "even"
    gain = after - before
    low, high = bootstrap_interval(gain, run.config.evaluate.bootstrap, run.config.seed)
    size = 100 * float(gain.mean())
    ends = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if low > 0:
        return f"Held-out pass@1 rose by {size:.1f} points ({ends}), {span}.", "up"
    if high < 0:
        return f"Held-out pass@1 fell by {-size:.1f} points ({ends}), {span}.", "down"
    return f"Held-out pass@1 is not known to have changed: {size:+.1f} points ({ends}), {span}.", "even"


def _share(step: Iteration) -> str:
    return percent(pass_at_1(step))


def _policy(step: Iteration) -> str:
    return "the base model" if step.iteration == 0 else f"iteration {step.iteration}"
