"""What there is of a run, as JSON: read from manifests alone, so it answers at once."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pipeline.common.claims import few_questions
from pipeline.common.text import json_safe
from pipeline.config.course import Course
from pipeline.run.silence import is_flat
from pipeline.run.state import Iteration, Run
from pipeline.run.stopping import best_of, pass_at_1, silence_of
from pipeline.store import Artifact

TRAINING_FIGURES = ("kl_behavior", "entropy")


def status(run: Run) -> dict[str, Any]:
    """A run's figures and artifacts, iteration by iteration.

    The result is JSON-safe: what is not there yet, not defined or not finite is None. Accuracy is that of the iteration's
    policy; reward and tokens are those of its training rollouts; KL and entropy are those of the training that followed.
    Seconds are the wall time of the process that finished the work; `generate` is rollouts and held-out answers.
    """
    course = Course(run.config)
    result = {
        "name": run.config.name,
        "complete": run.missing is None,
        "missing": run.missing,
        "stopped": asdict(run.stopped) if run.stopped else None,
        "best": _best(run),
        "warnings": [warning for warning in (*map(_warning, run.iterations), _few(run)) if warning],
        "iterations": [{**_iteration(step), **_course(course, run, step)} for step in run.iterations],
    }
    safe: dict[str, Any] = json_safe(result)
    return safe


def _course(course: Course, run: Run, step: Iteration) -> dict[str, Any]:
    """The algorithm that an iteration trains by, its phase, and the values of what schedules move."""
    if step.iteration >= run.config.iterations:
        return {"algorithm": None, "phase": None, "scheduled": {}}
    here = course.at(step.iteration)
    phase, scheduled = course.phase(step.iteration), course.scheduled(step.iteration)
    return {"algorithm": here.train.algorithm, "phase": phase, "scheduled": scheduled}


def _warning(step: Iteration) -> str | None:
    """What is wrong with an iteration's rewards as far as learning goes, if anything is."""
    which = f"iteration {step.iteration}"
    if why := silence_of(step):
        return f"{which}: {why}, so there is nothing to learn from"
    answers = step.answers.rollouts.summary if step.answers and step.answers.rollouts else {}
    one_each = answers.get("completions", 0) <= answers.get("groups", 0)
    if step.shaped and is_flat(step.shaped.summary) and not one_each:
        return f"{which}: no reward differs within any of its {step.shaped.summary['groups']:,} groups"
    return None


def _few(run: Run) -> str | None:
    """What is to be said where few questions judge the run."""
    evaluations = [step.evaluation for step in run.iterations if step.evaluation]
    questions = evaluations[-1].summary.get("prompts") if evaluations else None
    return few_questions(questions) if isinstance(questions, int) else None


def _best(run: Run) -> dict[str, Any] | None:
    """The checkpoint with the highest pass@1 so far."""
    step = best_of(run)
    if step is None:
        return None
    checkpoint = {"id": step.policy.id, "path": step.policy.url}
    return {"iteration": step.iteration, "pass_at_1": pass_at_1(step), "checkpoint": checkpoint}


def artifacts_of(step: Iteration) -> dict[str, Artifact | None]:
    """An iteration's artifacts by what they are to it."""
    answers = step.answers
    return {
        "policy": step.policy,
        "rollouts": answers.rollouts if answers else None,
        "sampled": answers.sampled if answers else None,
        "greedy": answers.greedy if answers else None,
        "evaluation": step.evaluation,
        **{f"{name} {role}": each for name, one in step.sets.items() for role, each in one.artifacts.items()},
        **({"revised": step.revised} if step.revised else {}),
        "shaped": step.shaped,
        **({"reference model": step.reference} if step.reference else {}),
        **step.scores,
        **{f"replay {n} {role}": each for n, part in enumerate(step.replayed, start=1) for role, each in part.artifacts.items()},
        "checkpoint": step.checkpoint,
    }


def _iteration(step: Iteration) -> dict[str, Any]:
    artifacts = artifacts_of(step)
    rollouts = _summary(artifacts["rollouts"])
    evaluation = _summary(artifacts["evaluation"])
    checkpoint = _summary(artifacts["checkpoint"])
    answered = [each for each in (step.answers, *(one.answers for one in step.sets.values())) if each]
    return {
        "iteration": step.iteration,
        **_accuracy(evaluation),
        "sets": {name: _accuracy(one.evaluation.summary) for name, one in step.sets.items()},
        "reward_mean": rollouts.get("reward_mean"),
        **{name: checkpoint.get(name) for name in TRAINING_FIGURES},
        "tokens": rollouts.get("tokens"),
        "training": _training(artifacts["checkpoint"]),
        "replayed_completions": sum(part.shaped.summary["kept"] for part in step.replayed),
        "seconds": {
            "generate": seconds_of(artifacts["rollouts"], *(one for each in answered for one in (each.sampled, each.greedy))),
            "shape": seconds_of(step.revised, artifacts["shaped"], *(part.shaped for part in step.replayed if part.is_drawn)),
            "train": seconds_of(artifacts["checkpoint"]),
            "evaluate": seconds_of(artifacts["evaluation"], *(one.evaluation for one in step.sets.values())),
        },
        "artifacts": {
            name: {"id": artifact.id, "path": artifact.url} if artifact else None for name, artifact in artifacts.items()
        },
    }


def _accuracy(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation's summary says, each figure with its interval."""
    pass_at = evaluation.get("pass_at") or {}
    first, greedy = pass_at.get("1") or {}, evaluation.get("greedy") or {}
    return {
        "pass_at_1": first.get("value"),
        "pass_at_1_low": first.get("low"),
        "pass_at_1_high": first.get("high"),
        "pass_at_k": pass_at or None,
        "greedy_accuracy": greedy.get("value"),
        "greedy_accuracy_low": greedy.get("low"),
        "greedy_accuracy_high": greedy.get("high"),
    }


def _training(checkpoint: Artifact | None) -> dict[str, Any]:
    """What a training spared and took: shares, counts and bytes."""
    notes = checkpoint.manifest.provenance.notes if checkpoint else {}
    named = {name: value if isinstance(value, dict) else {} for name, value in notes.items()}
    packing, memory = named.get("packing", {}), named.get("memory", {})
    counts = {name: _summary(checkpoint).get(name) for name in ("computed", "left_out")}
    spared = {name: packing.get(name) for name in ("reuse", "padding", "passes")}
    taken = {f"memory_{name}": memory.get(of) for name, of in (("estimated", "bytes"), ("peak", "peak"))}
    return {name: value if isinstance(value, int | float) else None for name, value in {**counts, **spared, **taken}.items()}


def _summary(artifact: Artifact | None) -> dict[str, Any]:
    return artifact.summary if artifact else {}


def seconds_of(*artifacts: Artifact | None) -> float | None:
    """Wall time of some artifacts; those that were made beside one another (one start of the engine) count once."""
    spans = sorted(_span(artifact) for artifact in artifacts if artifact)
    if not spans:
        return None
    together = [spans[0]]
    for start, seconds in spans[1:]:
        last_start, last_seconds = together[-1]
        # The times of day are whole seconds, so neighbors seem to overlap a little.
        if last_start + last_seconds - start > min(seconds, last_seconds) / 2:
            together[-1] = (last_start, max(seconds, last_seconds))
        else:
            together.append((start, seconds))
    return round(sum(seconds for _, seconds in together), 3)


def _span(artifact: Artifact) -> tuple[float, float]:
    """Start (seconds since the epoch) and length of the work."""
    provenance = artifact.manifest.provenance
    return datetime.fromisoformat(provenance.created).timestamp() - provenance.seconds, provenance.seconds
