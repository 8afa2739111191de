"""When a run has gone far enough, or wrong: rules over what its manifests say, so that looking again gives the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

from pipeline.config.stop import StopConfig
from pipeline.run.silence import silence
from pipeline.run.state import Iteration, Run, Stop


def stop_of(run: Run) -> Stop | None:
    """The first rule of `stop` that the run's newest iteration breaks.

    Args:
        run: at least one iteration, the newest evaluated, shaped or trained.
    """
    settings, now = run.config.stop, run.iterations[-1]
    for rule in (_failed_rewards, _no_signal, _collapse, _target, _patience, _tokens):
        for name, why in rule(settings, run, now):
            return Stop(name, now.iteration, why, healthy=rule in (_target, _tokens))
    return None


def best_of(run: Run) -> Iteration | None:
    """The evaluated iteration with the highest pass@1, the earliest of equals."""
    judged = [(value, step) for step in run.iterations if (value := pass_at_1(step)) is not None]
    return max(judged, key=lambda pair: (pair[0], -pair[1].iteration))[1] if judged else None


def pass_at_1(step: Iteration) -> float | None:
    """Held-out pass@1 of an iteration's policy; None before it is evaluated."""
    figures: dict[str, Any] = step.evaluation.summary.get("pass_at") or {} if step.evaluation else {}
    value = (figures.get("1") or {}).get("value")
    return None if value is None else float(value)


Broken = Iterator[tuple[str, str]]


def _failed_rewards(settings: StopConfig, run: Run, now: Iteration) -> Broken:
    rollouts = now.answers.rollouts if now.answers else None
    if rollouts is None or settings.max_failed_rewards is None:
        return
    share = rollouts.summary["statuses"].get("reward_error", 0) / max(rollouts.summary["completions"], 1)
    if share > settings.max_failed_rewards:
        yield "max_failed_rewards", f"{share:.1%} of the rewards failed, more than {settings.max_failed_rewards:.1%}"


def _no_signal(settings: StopConfig, run: Run, now: Iteration) -> Broken:
    """Rounds in a row whose rewards teach nothing, the newest among them. Rounds that train nothing at all do not count."""
    rounds = [step for step in run.iterations if any(part.shaped.summary.get("kept") for part in step.parts)]
    silent = list(takewhile(silence_of, reversed(rounds)))
    if settings.no_signal is None or len(silent) < settings.no_signal or silent[0] is not now:
        return
    often = f" ({len(silent)} rounds in a row)" if len(silent) > 1 else ""
    remedy = f"`rollbook show {run.config.directory}` has them; stop.no_signal: null goes on all the same"
    yield "no_signal", f"{silence_of(now)}{often}, so there is nothing to learn from. {remedy}"


def silence_of(step: Iteration) -> str | None:
    """Why an iteration's rewards teach nothing; None if they do, or before they are shaped."""
    return silence([part.shaped.summary for part in step.parts])


def _collapse(settings: StopConfig, run: Run, now: Iteration) -> Broken:
    figures = now.checkpoint.summary if now.checkpoint else {}
    entropy, kl = figures.get("entropy"), figures.get("kl_behavior")
    if entropy is not None and settings.min_entropy is not None and entropy < settings.min_entropy:
        yield "min_entropy", f"entropy fell to {entropy:.3g} nats per token, below {settings.min_entropy:g}"
    if entropy is not None and settings.max_entropy is not None and entropy > settings.max_entropy:
        yield "max_entropy", f"entropy rose to {entropy:.3g} nats per token, above {settings.max_entropy:g}"
    if kl is not None and settings.max_kl is not None and kl > settings.max_kl:
        yield "max_kl", f"KL to the behavior policy rose to {kl:.3g} nats per token, above {settings.max_kl:g}"
    value, best = pass_at_1(now), best_of(run)
    if settings.max_drop is None or value is None or best is None:
        return
    highest = pass_at_1(best) or 0.0
    if highest - value > settings.max_drop:
        lost = f"pass@1 fell from {highest:.3f} (iteration {best.iteration}) to {value:.3f}"
        yield "max_drop", f"{lost}, by more than {settings.max_drop:g}"


def _target(settings: StopConfig, run: Run, now: Iteration) -> Broken:
    value = pass_at_1(now)
    if settings.target_pass_at_1 is not None and value is not None and value >= settings.target_pass_at_1:
        yield "target_pass_at_1", f"pass@1 is {value:.3f}; the target was {settings.target_pass_at_1:g}"


def _patience(settings: StopConfig, run: Run, now: Iteration) -> Broken:
    """No gain over the highest pass@1 of the iterations before the last `patience` ones."""
    values = [value for step in run.iterations if (value := pass_at_1(step)) is not None]
    if settings.patience is None or len(values) <= settings.patience or now.checkpoint is not None:
        return
    before, recent = max(values[: -settings.patience]), max(values[-settings.patience :])
    if recent <= before + settings.min_gain:
        gain = f"pass@1 gained no more than {settings.min_gain:g}" if settings.min_gain else "pass@1 did not rise"
        yield "patience", f"{gain} in {settings.patience} iterations: {before:.3f} before, at most {recent:.3f} since"


def _tokens(settings: StopConfig, run: Run, now: Iteration) -> Broken:
    spent = generated_tokens(run)
    if settings.max_tokens is not None and now.checkpoint is not None and spent >= settings.max_tokens:
        yield "max_tokens", f"{spent:,} tokens were generated; the budget was {settings.max_tokens:,}"


def generated_tokens(run: Run) -> int:
    """Tokens of all training rollouts and held-out answers of a run, each artifact once."""
    answers = [step.answers for step in run.iterations if step.answers]
    artifacts = [part for answer in answers for part in (answer.rollouts, answer.sampled, answer.greedy) if part]
    return sum({artifact.id: int(artifact.summary.get("tokens", 0)) for artifact in artifacts}.values())


Pause = Callable[[Run], bool]
"""Asked after every stage whether to leave the rest for another time."""
