"""What a first config needs to know of a model: seen in its files, without loading it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.near import did_you_mean
from pipeline.config.data import ModelConfig
from pipeline.sources import models as base_model
from pipeline.sources.gguf_files import is_gguf

SMALL = 200 << 20
"""Bytes of weights below which a model counts as a toy that learns with larger steps."""
CHAT_NAMES = ("instruct", "chat", "-it")
LOOKED_AT = 2000
"""Prompts whose tokens are counted."""


@dataclass(frozen=True)
class ModelChoice:
    """A model directory, a GGUF file, or a name on the hub."""

    path: str
    files: dict[str, Path]
    """Of a directory; of a hub name none: it is fetched when the run is checked."""

    @property
    def has_chat_template(self) -> bool:
        if not self.files:
            return any(part in self.path.lower() for part in CHAT_NAMES)
        return base_model.has_chat_template(self.files)

    @property
    def is_small(self) -> bool:
        return 0 < sum(path.stat().st_size for name, path in self.files.items() if name.endswith(".safetensors")) < SMALL

    @property
    def context(self) -> int | None:
        """Positions it has, if it says so."""
        if not self.files:
            return None
        return base_model.positions(self.files["config.json"])

    def longest(self, texts: Sequence[str]) -> int | None:
        """Tokens of the longest of the first texts, if the tokenizer can be asked cheaply.

        Raises:
            UserError: its file cannot be read.
        """
        if "tokenizer.json" not in self.files:
            return None
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self.files["tokenizer.json"]))
        except Exception as error:  # the library has no kind of its own
            raise UserError(f"{self.files['tokenizer.json']}: cannot be read: {error}") from None
        return max(len(found.ids) for found in tokenizer.encode_batch(list(texts[:LOOKED_AT])))


def find_model(path: str) -> ModelChoice:
    """
    Raises:
        UserError: neither a sound model directory nor what can be a hub name.
    """
    path = os.path.expanduser(path)
    directory = Path(path)
    if is_gguf(directory):
        return ModelChoice(path, base_model.model_files(base_model.locate(ModelConfig(path=path))))
    if not directory.is_dir():
        if directory.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
            near = did_you_mean(path) or ". Give a Hugging Face model directory, a GGUF file, or a hub name such as owner/name"
            raise UserError(f"{path}: no such directory{near}")
        return ModelChoice(path, {})
    base_model.locate(ModelConfig(path=path))
    return ModelChoice(path, base_model.model_files(directory))
