"""What a run begins with: the base model and the prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.data import ModelConfig, PromptSource
from pipeline.config.run import RunConfig
from pipeline.run.order import STAGES, Job, Order
from pipeline.sources.gguf_files import described, made_from
from pipeline.sources.models import hashes_of, is_snapshot, locate, model_files, original_of
from pipeline.sources.prompts import load_once, rows_hash
from pipeline.sources.rendering import Rendering, tools_of
from pipeline.store import Artifact, Request
from schemas.manifest import ORIGINAL

BASE, TRAIN_PROMPTS, HELDOUT_PROMPTS = "base model", "training prompts", "held-out prompts"
REFERENCE_MODEL = "reference model"
RECORDED = {"split", "subset", "revision", "question", "answer", "prompt_id", "answer_pattern", "limit"}
"""Settings of a set that are part of the prompts' key. What the others decide is in the hash of the rows."""


class WithModel(Protocol):
    """A config that names a model."""

    @property
    def model(self) -> ModelConfig: ...


def import_order(config: WithModel, title: str = BASE) -> Order:
    """The model of a config as the checkpoint of iteration 0.

    Raises:
        UserError: no model there, or none that can be used.
    """
    section = config.model
    directory = locate(section)
    files = model_files(directory, trust_remote_code=section.trust_remote_code)
    hashes = hashes_of(files)
    original = original_of(directory, hashes)
    made = made_from(directory)
    told = {
        "files": {name: str(path) for name, path in files.items()},
        "origin": section.path,
        "original": _place_of(original) if original else None,
        "made": described(made) if made else None,
        "link": links(section.link, directory, original or made),
    }
    job = Job(request=import_request(hashes, original, made), told=told)
    return Order(title=title, module="pipeline.sources.models", jobs=(job,), here=True)


def other_model_order(config: RunConfig, path: str) -> Order:
    """A model that an iteration reads or draws by beside its policy, as a checkpoint.

    Args:
        path: a checkpoint, a model directory or a hub name.

    Raises:
        UserError: as `import_order`.
    """
    section = config.model.model_copy(update={"path": path, "revision": None})
    return import_order(config.model_copy(update={"model": section}), REFERENCE_MODEL)


def links(wanted: str, directory: Path, kept: object) -> bool | None:
    """Whether weights may be hard links: True, or None if only copies that share blocks; False for plain copies.

    Args:
        kept: something if the files lie in a store or in the cache.
    """
    if wanted == "auto":
        return True if kept or is_snapshot(directory) else None
    return wanted == "always"


def _place_of(artifact: Artifact) -> str:
    return artifact.url if "://" in artifact.url else str(artifact.path)


def train_prompts_order(config: RunConfig, base: Artifact) -> Order:
    """Prompts that rollouts are generated for."""
    return _prompts_order(TRAIN_PROMPTS, config, config.data.train, base, None)


def heldout_prompts_order(config: RunConfig, base: Artifact, train: Artifact, title: str = HELDOUT_PROMPTS) -> Order:
    """Prompts that checkpoints are judged by."""
    disjoint_from = None if config.data.allow_overlap else train
    return _prompts_order(title, config, config.data.heldout, base, disjoint_from)


def _prompts_order(title: str, config: RunConfig, source: PromptSource, base: Artifact, disjoint_from: Artifact | None) -> Order:
    for file in base.files:
        if not file.path.endswith(".safetensors"):
            base.file(file.path)  # on this machine: they say which prompts fit
    rendering, model = Rendering.of(config, base.path), base if config.data.chat else None
    rows = rows_hash(load_once(source, rendering).good)
    request = prompts_request(config, source, rows, model=model, disjoint_from=disjoint_from)
    told: dict[str, Any] = {
        "source": source.model_dump(mode="json"),
        "rendering": asdict(rendering),
        "disjoint_from": str(disjoint_from.path) if disjoint_from else None,
    }
    return Order(title=title, module="pipeline.sources.prompts", jobs=(Job(request=request, told=told),), here=True)


def import_request(hashes: dict[str, str], original: Artifact | None = None, made: dict[str, Any] | None = None) -> Request:
    """A base model, by the sha256 of its files. Of a checkpoint artifact's, that is its parent: where it comes from counts.

    Args:
        made: what the files were made from, as `made_from` tells it; its hash is part of the recipe.
    """
    parents = (original.as_parent(ORIGINAL),) if original else ()
    recipe: dict[str, Any] = {"files": hashes, "iteration": 0}
    if made:
        recipe["made_from"] = {name: made[name] for name in ("sha256", "dtype", "types")}
    return Request("checkpoint", STAGES["import"], recipe, parents)


def prompts_request(
    config: RunConfig, source: PromptSource, rows: str, *, model: Artifact | None, disjoint_from: Artifact | None
) -> Request:
    """Prompts of one source, rendered. Rows that are set aside, or taken out of the source, make no others of the rest.

    Args:
        rows: hash of the rows that fit.
        model: given if its chat template renders them.
    """
    recipe: dict[str, Any] = {
        "source": source.model_dump(mode="json", include=RECORDED) | {"hash": rows},
        "template": config.data.template,
        "chat": config.data.chat,
        "system": config.data.system,
    }
    if config.data.chat_template_kwargs:
        recipe["chat_template_kwargs"] = config.data.chat_template_kwargs
    if tools := tools_of(config):
        recipe["tools"] = tools
    parents = [model.as_parent("tokenizer")] if model else []
    parents += [disjoint_from.as_parent("disjoint_from")] if disjoint_from else []
    return Request("prompts", STAGES["prompts"], recipe, tuple(parents))
