"""What a run begins with: the base model and the prompts."""

from __future__ import annotations

from typing import Any

from pipeline.config.data import PromptSource
from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Job, Order
from pipeline.sources.models import hashes_of, locate, model_files, original_of
from pipeline.sources.prompts import source_hash
from pipeline.store import Artifact, Request
from schemas.manifest import ORIGINAL

BASE, TRAIN_PROMPTS, HELDOUT_PROMPTS = "base model", "training prompts", "held-out prompts"


def import_order(config: RunConfig) -> Order:
    """The base model as the checkpoint of iteration 0.

    Raises:
        UserError: no model there, or none that can be used.
    """
    section = config.model
    directory = locate(section)
    files = model_files(directory, trust_remote_code=section.trust_remote_code)
    hashes = hashes_of(files)
    original = original_of(directory, hashes)
    told = {
        "files": {name: str(path) for name, path in files.items()},
        "origin": section.path,
        "original": _place_of(original) if original else None,
    }
    job = Job(request=import_request(hashes, original), told=told)
    return Order(title=BASE, module="pipeline.sources.models", jobs=(job,), here=True)


def _place_of(artifact: Artifact) -> str:
    return artifact.url if "://" in artifact.url else str(artifact.path)


def train_prompts_order(config: RunConfig, base: Artifact) -> Order:
    """Prompts that rollouts are generated for."""
    return _prompts_order(TRAIN_PROMPTS, config, config.data.train, base, None)


def heldout_prompts_order(config: RunConfig, base: Artifact, train: Artifact) -> Order:
    """Prompts that checkpoints are judged by."""
    disjoint_from = None if config.data.allow_overlap else train
    return _prompts_order(HELDOUT_PROMPTS, config, config.data.heldout, base, disjoint_from)


def _prompts_order(title: str, config: RunConfig, source: PromptSource, base: Artifact, disjoint_from: Artifact | None) -> Order:
    model = base if config.data.chat else None
    request = prompts_request(config, source, source_hash(source), model=model, disjoint_from=disjoint_from)
    told: dict[str, Any] = {
        "source": source.model_dump(mode="json"),
        "data": {"template": config.data.template, "chat": config.data.chat, "system": config.data.system},
        "model": str(base.path),
        "disjoint_from": str(disjoint_from.path) if disjoint_from else None,
        "trust_remote_code": config.model.trust_remote_code,
    }
    return Order(title=title, module="pipeline.sources.prompts", jobs=(Job(request=request, told=told),), here=True)


def import_request(hashes: dict[str, str], original: Artifact | None = None) -> Request:
    """A base model, by the sha256 of its files. Of a checkpoint artifact's, that is its parent: where it comes from counts."""
    parents = (original.as_parent(ORIGINAL),) if original else ()
    return Request("checkpoint", STAGES["import"], {"files": hashes, "iteration": 0}, parents)


def prompts_request(
    config: RunConfig, source: PromptSource, source_hash: str, *, model: Artifact | None, disjoint_from: Artifact | None
) -> Request:
    """Prompts of one source, rendered. `model` is given if its chat template renders them."""
    decides_nothing = {"path"} if source.bad_rows == "set_aside" else {"path", "bad_rows"}
    recipe = {
        "source": source.model_dump(mode="json", exclude=decides_nothing) | {"hash": source_hash},
        "template": config.data.template,
        "chat": config.data.chat,
        "system": config.data.system,
    }
    parents = [model.as_parent("tokenizer")] if model else []
    parents += [disjoint_from.as_parent("disjoint_from")] if disjoint_from else []
    return Request("prompts", STAGES["prompts"], recipe, tuple(parents))
