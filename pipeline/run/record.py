"""The record of a run on disk: run.json in the run directory, which names every artifact by id and place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import IntegrityError, UserError
from pipeline.common.near import did_you_mean
from pipeline.config.load import SUFFIXES, describe_errors, load_config
from pipeline.config.run import RunConfig
from pipeline.run.parts import Part
from pipeline.run.state import Answers, Iteration, Judgment, Run, Stop
from pipeline.run.stopping import best_of
from pipeline.store import Artifact
from pipeline.store.files import write_text
from pipeline.store.store import load_artifact
from schemas.manifest import UNSEALED, sealed

RECORD = "run.json"
FORMAT = "rollbook-run/1"
PARTS = ("rollouts", "sampled", "greedy")
LONGEST_WHY = 200
"""Characters that are shown of what is wrong with a record."""


def save_run(run: Run, directory: Path) -> None:
    """Write the record. Artifacts inside the directory are named relative to it, so that it can be moved."""

    def reference(artifact: Artifact | None) -> dict[str, str] | None:
        if artifact is None:
            return None
        path, place = artifact.url, artifact.path
        if path == str(place):  # a directory, not a bucket
            inside = place.resolve().is_relative_to(directory.resolve())
            path = os.path.relpath(place, directory) if inside else str(place.resolve())
        return {"kind": artifact.kind, "id": artifact.id, "path": path}

    iterations = [
        {
            "iteration": step.iteration,
            "policy": reference(step.policy),
            **{part: reference(getattr(step.answers, part)) if step.answers else None for part in PARTS},
            **{part: reference(getattr(step, part)) for part in ("evaluation", "shaped", "checkpoint")},
            "reference": reference(step.reference),
            "scores": {role: reference(artifact) for role, artifact in step.scores.items()},
            **({"sets": {name: _named(one.artifacts, reference) for name, one in step.sets.items()}} if step.sets else {}),
            **({"revised": reference(step.revised)} if step.revised else {}),
            "replayed": [{role: reference(artifact) for role, artifact in part.artifacts.items()} for part in step.replayed],
        }
        for step in run.iterations
    ]
    record = {
        "format": FORMAT,
        "seal": UNSEALED,
        "config": run.config.model_dump(mode="json"),
        "missing": run.missing,
        "stopped": asdict(run.stopped) if run.stopped else None,
        "best": reference(best.policy) if (best := best_of(run)) else None,
        "train_prompts": reference(run.train_prompts),
        "heldout_prompts": reference(run.heldout_prompts),
        **({"set_prompts": _named(run.set_prompts, reference)} if run.set_prompts else {}),
        "iterations": iterations,
    }
    text = sealed(json.dumps(record, indent=2) + "\n")
    file = directory / RECORD
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)


def _named(artifacts: Mapping[str, Artifact | None], reference: Callable[[Artifact | None], Any]) -> dict[str, Any]:
    return {name: reference(artifact) for name, artifact in artifacts.items()}


def recorded_config(directory: Path) -> RunConfig | None:
    """The settings of a run's record, wherever its artifacts are; None if there is no record.

    Raises:
        IntegrityError: the record is damaged.
    """
    file = directory / RECORD
    try:
        return RunConfig.model_validate(json.loads(file.read_text(encoding="utf-8"))["config"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise IntegrityError(f"{file}: not a valid run record: {_one_line(error)}") from None


def directory_of(place: Path) -> Path:
    """A run's directory, named by itself or by the record in it."""
    return place if place.is_dir() else place.parent


def run_of_config(config: Path) -> str:
    """What to name instead of a config, where a run is meant: its directory, if the file is sound."""
    try:
        directory = load_config(config).directory
    except UserError as error:
        return f"a run is named by its directory, such as runs/demo, and this is no sound config either ({error})"
    begun = "" if (directory / RECORD).exists() else f", which `rollbook run {config}` begins"
    return f"a config; its run is the directory {directory}{begun}. Name that"


def load_run(directory: str | Path, *, damaged: bool = False) -> Run:
    """Read a run's record and open its artifacts.

    Args:
        damaged: leave out what cannot be opened, and all that follows a checkpoint that cannot, instead of refusing the run.

    Raises:
        UserError: no run there.
        IntegrityError: an artifact is missing or is not the one that was recorded.
    """
    place = Path(directory)
    if place.suffix in SUFFIXES:
        raise UserError(f"{place}: {run_of_config(place)}")
    file = place / RECORD if place.is_dir() else place
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"{file}: format {record['format']!r}; this version of rollbook reads {FORMAT!r}")
        return _run_of(record, file.parent, damaged)
    except (FileNotFoundError, NotADirectoryError):
        near = did_you_mean(place) or ". Name a run directory such as runs/demo"
        raise UserError(f"{place}: no run there (it has no {RECORD}){near}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise IntegrityError(f"{file}: not a valid run record: {_one_line(error)}") from None


def _run_of(record: dict[str, Any], directory: Path, damaged: bool) -> Run:
    def artifact(reference: dict[str, Any] | None) -> Artifact | None:
        try:
            return _open(reference, directory) if reference is not None else None
        except UserError:
            if damaged:
                return None
            raise

    config = RunConfig.model_validate(record["config"])
    run = Run(config, artifact(record["train_prompts"]), artifact(record["heldout_prompts"]), missing=record["missing"])
    stated = record.get("set_prompts", {}).items()
    run.set_prompts = {name: prompts for name, reference in stated if (prompts := artifact(reference))}
    run.stopped = Stop(**record["stopped"]) if record["stopped"] else None
    for entry in record["iterations"]:
        policy = artifact(entry["policy"]) if damaged else _open(entry["policy"], directory)
        if policy is None:
            break
        sampled = artifact(entry["sampled"])
        answers = Answers(sampled, artifact(entry["greedy"]), artifact(entry["rollouts"])) if sampled else None
        rest: dict[str, Any] = {part: artifact(entry[part]) for part in ("evaluation", "shaped", "checkpoint")}
        scores = {role: found for role, ref in entry["scores"].items() if (found := artifact(ref))}
        judged = ((name, {role: artifact(each) for role, each in one.items()}) for name, one in entry.get("sets", {}).items())
        rest["sets"] = {name: one for name, parts in judged if (one := _judgment(parts))}
        rest["reference"] = artifact(entry.get("reference"))
        rest["revised"] = artifact(entry.get("revised"))
        mixed = [{role: artifact(reference) for role, reference in part.items()} for part in entry["replayed"]]
        replayed = tuple(
            _part({role: found for role, found in part.items() if found}) for part in mixed if not damaged or all(part.values())
        )
        run.iterations.append(Iteration(entry["iteration"], policy, answers, scores=scores, replayed=replayed, **rest))
    return run


def _judgment(parts: dict[str, Artifact | None]) -> Judgment | None:
    sampled, evaluation = parts["sampled"], parts["evaluation"]
    return Judgment(Answers(sampled, parts["greedy"], None), evaluation) if sampled and evaluation else None


def _part(artifacts: dict[str, Artifact]) -> Part:
    return Part(artifacts.pop("rollouts"), artifacts.pop("shaped"), artifacts)


def _open(reference: dict[str, Any], directory: Path) -> Artifact:
    path = reference["path"]
    found = load_artifact(path if path.startswith("s3://") else directory / path)
    if found.id != reference["id"]:
        raise IntegrityError(f"{found.url}: has id {found.id[:16]}, the run recorded {reference['id'][:16]}")
    return found


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return _of_settings(error)
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:LONGEST_WHY]


def _of_settings(error: ValidationError) -> str:
    """What is wrong with a record's settings; those that are not known here were written by another version."""
    unknown = [".".join(map(str, one["loc"])) for one in error.errors() if one["type"] == "extra_forbidden"]
    if len(unknown) == error.error_count():
        return f"it has settings that this version lacks ({', '.join(unknown)}): use the version that wrote it"
    return "; ".join(describe_errors(error, RunConfig))[:LONGEST_WHY]
