"""A checkpoint as a Hugging Face model directory, with a card that cites the data it learned from and how it did."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.text import code
from pipeline.exchange.exports.card import card, figures, origin, table
from pipeline.look.show.subject import artifacts_in, store_around
from pipeline.sources.models import model_files
from pipeline.sources.weights import refuse_missing_weights
from pipeline.store import Artifact

SHOWN = ("learning_rate", "epochs", "batch_completions", "seed", "dtype", "iteration")
"""Settings of a training that the card states."""


def write_model(artifact: Artifact, directory: Path, *, trust_remote_code: bool = False) -> int:
    """Copy the model's files and write the card. Returns the number of files.

    Raises:
        UserError: not a checkpoint, or one that lacks weights.
    """
    if artifact.kind != "checkpoint":
        raise UserError(f"{artifact.url}: a {artifact.kind} artifact; --to model exports a checkpoint")
    artifact.verify()
    files = model_files(artifact.path, trust_remote_code=trust_remote_code)
    refuse_missing_weights(artifact.path, trust_remote_code=trust_remote_code)
    for name, path in files.items():
        shutil.copyfile(path, directory / name)
    shutil.copyfile(artifact.path / "manifest.json", directory / "rollbook-manifest.json")
    evaluations = _evaluations(artifact)
    (directory / "README.md").write_text(card(_front(artifact, evaluations), _parts(artifact, evaluations)), encoding="utf-8")
    return len(files)


def _evaluations(artifact: Artifact) -> list[Artifact]:
    """Evaluations of the checkpoint in its store."""
    found = artifacts_in(store_around(artifact), "evaluation")
    return [one for one in found if any(p.role == "policy" and p.id == artifact.id for p in one.manifest.content.parents)]


def _figures(evaluation: Artifact) -> dict[str, float]:
    """Figures of an evaluation, with those inside others under their path."""
    flat: dict[str, float] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix] = value

    walk("", evaluation.summary)
    return flat


def _front(artifact: Artifact, evaluations: list[Artifact]) -> dict[str, Any]:
    name = f"checkpoint {artifact.id[:12]}"
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rollbook", "reinforcement-learning"],
    }
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"held-out prompts of evaluation {one.id[:12]}", "type": "rollbook"},
            "metrics": [{"type": figure, "name": figure, "value": value} for figure, value in _figures(one).items()],
        }
        for one in evaluations
    ]
    return {**front, "model-index": [{"name": name, "results": results}]} if results else front


def _parts(artifact: Artifact, evaluations: list[Artifact]) -> list[str]:
    recipe, parents = artifact.recipe, artifact.manifest.content.parents
    algorithm = recipe.get("algorithm")
    parts = [f"# Checkpoint {artifact.id[:12]}"]
    if algorithm is None:
        parts.append("A base model, as it was taken into the store.")
    else:
        settings = [[code(name), code(recipe[name])] for name in SHOWN if name in recipe]
        cells = [[code(f"algorithm.{name}"), code(value)] for name, value in algorithm.items()]
        data = ", ".join(code(parent.id) for parent in parents if parent.kind in ("rollouts", "shaped"))
        parts.append(f"Trained by rollbook, offline, on the stored rollouts and shaped tables {data}.")
        parts.append("## Algorithm and settings\n\n" + table(["setting", "value"], [*cells, *settings]))
    parts.append("## Figures of the training\n\n" + figures(artifact))
    for one in evaluations:
        rows = [[code(name), code(value)] for name, value in _figures(one).items()]
        parts.append(f"## Evaluation {code(one.id)}\n\n" + table(["figure", "value"], rows))
    parts.append("## Where it comes from\n\n" + origin(artifact))
    parts.append("`rollbook-manifest.json` is the checkpoint's manifest, with the sha256 of every file.")
    return parts
