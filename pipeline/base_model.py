"""The base model: found, checked and copied into the store as the checkpoint of iteration 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.artifacts import Artifact, Request, Store
from pipeline.artifacts.files import sha256_of, whole_file
from pipeline.artifacts.work import Work
from pipeline.config import ModelConfig
from pipeline.errors import UserError

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".py")
"""What is copied. Pickled weights (.bin, .pt) are never opened."""


def locate(config: ModelConfig) -> Path:
    """The directory of a model: a local one, or a hub snapshot (downloaded if it is not cached).

    Raises:
        UserError: neither a directory nor a hub name that can be reached.
    """
    path = Path(config.path)
    if path.is_dir():
        return path
    if path.is_absolute() or config.path.startswith((".", "~")) or config.path.count("/") != 1:
        raise UserError(f"model.path: no directory {config.path}. Give a model directory, or a hub name such as owner/name")
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model.path: {config.path} is no local directory and could not be had from the hub: {_first_line(error)}"
        ) from None


def model_files(directory: Path, *, trust_remote_code: bool = False) -> dict[str, Path]:
    """Files of a model directory that belong to it, by name.

    Raises:
        UserError: no config.json or one that holds no JSON object, or no safetensors weights.
    """
    found = {
        path.name: path
        for path in sorted(directory.iterdir())
        if path.suffix in SUFFIXES and path.is_file() and (path.suffix != ".py" or trust_remote_code)
    }
    if "config.json" not in found:
        raise UserError(f"{directory}: not a Hugging Face model directory (it has no config.json)")
    try:
        settings = json.loads(found["config.json"].read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{found['config.json']}: not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{found['config.json']}: expected a JSON object, found {type(settings).__name__}")
    if not any(name.endswith(".safetensors") for name in found):
        raise UserError(
            f"{directory}: no .safetensors weights. Pickled weights are not read; convert them with "
            "`model.save_pretrained(path, safe_serialization=True)`"
        )
    return found


def hashes_of(files: dict[str, Path]) -> dict[str, str]:
    return {name: sha256_of(path) for name, path in files.items()}


def import_model(store: Store, request: Request, files: dict[str, Path], origin: str) -> Artifact:
    """Copy a model's files into the store.

    Args:
        origin: where they came from, as the user wrote it; recorded under provenance.
    """
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        for name, path in files.items():
            with whole_file(work.path / name) as temporary:
                shutil.copyfile(path, temporary)
        return work.finish({"iteration": 0}, notes={"imported_from": origin})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
