"""A tokenizer for those who need its ids and its end token alone: transformers, whose import takes longer than many a use of it,
is asked once for each tokenizer, and what it said is remembered on this machine.

<cache>/tokenizers/<hash of the model's files that decide it, and of the libraries' versions>.json

Only a tokenizer that is, part by part, what the tokenizers library makes of its tokenizer.json is remembered. Any other is
loaded by transformers each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.sources.tokenizer import BESIDE, FILE, load_tokenizer, of_file
from pipeline.store.cache import cache_directory
from pipeline.store.files import TEMPORARY
from pipeline.store.remembered import known_sha256

NAMES = ("bos_token", "bos_token_id", "eos_token", "eos_token_id", "chat_template", "all_special_ids")
"""What is asked of a tokenizer beside ids."""
DECIDING = (FILE, *BESIDE, "config.json", "vocab.json", "merges.txt", "tokenizer.model")
CALLS = ("__call__", "_encode_plus")
"""Methods of which a class of its own kind may make other ids."""


class RecalledTokenizer:
    """A tokenizer's ids by the tokenizers library. What else is asked of it, transformers is loaded for."""

    def __init__(self, directory: Path, said: dict[str, Any]) -> None:
        """
        Args:
            said: the values of `NAMES`.
        """
        self._directory = directory
        self._loaded: Any = None
        self.backend_tokenizer = of_file(directory / FILE)
        self.__dict__.update(said)

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        found = self.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in found]}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._loaded is None:
            self._loaded = _unbounded(load_tokenizer(self._directory, trust_remote_code=False))
        return getattr(self._loaded, name)


def tokenizer_and_vocabulary(directory: Path, *, trust_remote_code: bool) -> tuple[Any, int]:
    """A model's tokenizer, for texts of any length, and the number of ids that the model has: as many as its embedding has rows,
    or more where the tokenizer has more.

    Raises:
        UserError: it cannot be loaded, or not as its tokenizer.json describes it.
    """
    place = None if trust_remote_code or not (directory / FILE).is_file() else _place(directory)
    if place is not None and (said := _recalled(place)) is not None:
        return RecalledTokenizer(directory, said["names"]), said["vocabulary"]
    tokenizer = _unbounded(load_tokenizer(directory, trust_remote_code=trust_remote_code))
    vocabulary = _vocabulary(directory, tokenizer)
    if place is not None and _is_its_file(directory, tokenizer):
        _remember(place, {"names": {name: getattr(tokenizer, name) for name in NAMES}, "vocabulary": vocabulary})
    return tokenizer, vocabulary


def _unbounded(tokenizer: Any) -> Any:
    tokenizer.model_max_length = sys.maxsize  # or transformers says that longer texts lead to errors
    return tokenizer


def _vocabulary(directory: Path, tokenizer: Any) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    return max(int(getattr(config.get_text_config(), "vocab_size", 0) or 0), len(tokenizer))


def _is_its_file(directory: Path, tokenizer: Any) -> bool:
    """Whether a tokenizer makes the ids that the tokenizers library makes with its file, special tokens around them too."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.split_special_tokens or not kind.__module__.startswith("transformers."):
        return False
    if any(getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name) for name in CALLS):
        return False
    return _described(backend) == _described(of_file(directory / FILE))


def _described(backend: Any) -> dict[str, Any]:
    """All that a tokenizer consists of, but for where it cuts texts and what it fills them up with."""
    return dict(json.loads(backend.to_str())) | {"truncation": None, "padding": None}


def _place(directory: Path) -> Path:
    hashes = {name: known_sha256(directory / name) for name in DECIDING if (directory / name).is_file()}
    libraries = {name: version(name) for name in ("tokenizers", "transformers")}
    key = hashlib.sha256(json.dumps([hashes, libraries], sort_keys=True).encode()).hexdigest()
    return cache_directory() / "tokenizers" / f"{key}.json"


def _recalled(place: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
        return said if said["names"].keys() == set(NAMES) and isinstance(said["vocabulary"], int) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _remember(place: Path, said: dict[str, Any]) -> None:
    temporary = place.with_name(f"{TEMPORARY}{os.getpid()}-{place.name}")
    with suppress(OSError, TypeError):  # without a cache, and of settings that are no JSON, transformers is asked again
        text = json.dumps(said)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(place)
