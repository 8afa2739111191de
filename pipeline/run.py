"""What there is of a run, and its record on disk: run.json in the run directory, which names every artifact by id and place."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.artifacts.files import write_text
from pipeline.artifacts.store import load_artifact
from pipeline.config import RunConfig
from pipeline.errors import IntegrityError, UserError

RECORD = "run.json"
FORMAT = "rollbook-run/1"
PARTS = ("rollouts", "sampled", "greedy")


@dataclass(frozen=True)
class Answers:
    """What one checkpoint answered, from one start of the engine."""

    sampled: Artifact
    """Held-out prompts, several samples each."""
    greedy: Artifact | None
    """Held-out prompts at temperature 0."""
    rollouts: Artifact | None
    """Training prompts; None for the last checkpoint."""


@dataclass
class Iteration:
    """One checkpoint: its evaluation, and the training that led away from it."""

    iteration: int
    policy: Artifact
    answers: Answers | None = None
    evaluation: Artifact | None = None
    shaped: Artifact | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)
    """Cached logprobs by role, for algorithms that need them."""
    checkpoint: Artifact | None = None


@dataclass
class Run:
    """What there is of a run, in order. Iteration 0 is the base model."""

    config: RunConfig
    train_prompts: Artifact | None = None
    heldout_prompts: Artifact | None = None
    iterations: list[Iteration] = field(default_factory=list)
    missing: str | None = None
    """The first stage that is not finished yet; None when the run is complete."""


def save_run(run: Run, directory: Path) -> None:
    """Write the record. Artifacts inside the directory are named relative to it, so that it can be moved."""

    def reference(artifact: Artifact | None) -> dict[str, str] | None:
        if artifact is None:
            return None
        inside = artifact.path.resolve().is_relative_to(directory.resolve())
        path = os.path.relpath(artifact.path, directory) if inside else str(artifact.path.resolve())
        return {"kind": artifact.kind, "id": artifact.id, "path": path}

    iterations = [
        {
            "iteration": step.iteration,
            "policy": reference(step.policy),
            **{part: reference(getattr(step.answers, part)) if step.answers else None for part in PARTS},
            **{part: reference(getattr(step, part)) for part in ("evaluation", "shaped", "checkpoint")},
            "scores": {role: reference(artifact) for role, artifact in step.scores.items()},
        }
        for step in run.iterations
    ]
    record = {
        "format": FORMAT,
        "config": run.config.model_dump(mode="json"),
        "missing": run.missing,
        "train_prompts": reference(run.train_prompts),
        "heldout_prompts": reference(run.heldout_prompts),
        "iterations": iterations,
    }
    text = json.dumps(record, indent=2) + "\n"
    file = directory / RECORD
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)


def load_run(directory: str | Path) -> Run:
    """Read a run's record and open its artifacts.

    Raises:
        UserError: no run there.
        IntegrityError: an artifact is missing or is not the one that was recorded.
    """
    place = Path(directory)
    file = place / RECORD if place.is_dir() else place
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"{file}: format {record['format']!r}; this version of rollbook reads {FORMAT!r}")
        return _run_of(record, file.parent)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{place}: no run there (it has no {RECORD}). Name a run directory such as runs/demo") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{file}: not a valid run record: {_one_line(error)}") from None


def _run_of(record: dict[str, Any], directory: Path) -> Run:
    def artifact(reference: dict[str, Any] | None) -> Artifact | None:
        return _open(reference, directory) if reference is not None else None

    config = RunConfig.model_validate(record["config"])
    run = Run(config, artifact(record["train_prompts"]), artifact(record["heldout_prompts"]), missing=record["missing"])
    for entry in record["iterations"]:
        policy = _open(entry["policy"], directory)
        sampled = artifact(entry["sampled"])
        answers = Answers(sampled, artifact(entry["greedy"]), artifact(entry["rollouts"])) if sampled else None
        rest = {part: artifact(entry[part]) for part in ("evaluation", "shaped", "checkpoint")}
        scores = {role: found for role, ref in entry["scores"].items() if (found := artifact(ref))}
        run.iterations.append(Iteration(entry["iteration"], policy, answers, scores=scores, **rest))
    return run


def _open(reference: dict[str, Any], directory: Path) -> Artifact:
    found = load_artifact(directory / reference["path"])
    if found.id != reference["id"]:
        raise IntegrityError(f"{found.path}: has id {found.id[:16]}, the run recorded {reference['id'][:16]}")
    return found


def _one_line(error: Exception) -> str:
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:200]
