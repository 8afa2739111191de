"""A model's tokenizer, loaded in one place, so that every stage sees the same one: that of its tokenizer.json.

transformers builds some tokenizers anew from the vocabulary and the rules of a class: which ones, it decides by model type, by
a class that the files name, and by a list of hub names that is compared with the path. The result can be another tokenizer
than the file describes, and another one again once the files lie elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
"""What decides ids and texts. What is put around a text is a setting beside the file."""
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_one_at_a_time = threading.Lock()
"""transformers cannot be imported by two threads at once."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool) -> Any:
    """A model's tokenizer by transformers, which gives the ids that the tokenizers library gives with its tokenizer.json.

    Raises:
        UserError: it cannot be loaded, or not as its tokenizer.json describes it.
    """
    with _one_at_a_time:
        return _loaded(directory, trust_remote_code)


def leave_torch_out() -> None:
    """For a process that needs tokenizers alone: transformers does without torch from now on, whose import takes seconds."""
    if "torch" not in sys.modules and "transformers" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Token ids of texts.

    Args:
        special: put around them what the tokenizer puts around a text, such as the token that begins a sequence. A text that
            begins with it already keeps that one. False of texts from a chat template, which writes special tokens itself.
    """
    if not texts:
        return []
    if not special and (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        return [encoding.ids for encoding in _whole(backend).encode_batch_fast(list(texts), add_special_tokens=False)]
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=special)["input_ids"]
    first, begin = tokenizer.bos_token_id, tokenizer.bos_token
    if not special or first is None:
        return found
    return [
        ids[1:] if text.startswith(begin) and ids[:2] == [first, first] else ids for text, ids in zip(texts, found, strict=True)
    ]


def encode_flat(tokenizer: Any, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids of texts, without special tokens: those of all, as `encode` has them, and how many each text has.

    Returns:
        int32 [tokens], int64 [texts]
    """
    if not texts or (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        lists: list[list[int]] = encode(tokenizer, texts, special=False)
        return np.fromiter(chain.from_iterable(lists), np.int32), np.fromiter(map(len, lists), np.int64, len(lists))
    found = _whole(backend).encode_batch_fast(list(texts), add_special_tokens=False)
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    return np.fromiter(chain.from_iterable([one.ids for one in found]), np.int32, int(lengths.sum())), lengths


def _whole(backend: Tokenizer) -> Tokenizer:
    """The tokenizer that neither cuts texts nor fills them up. (One that another thread is using is not to be set anew.)"""
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return backend


def of_file(path: Path) -> Tokenizer:
    """What a tokenizer.json describes, by the tokenizers library, whole: texts are neither cut nor filled up.

    Raises:
        UserError: it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def absent_tokens(directory: Path) -> dict[str, str]:
    """Special tokens that a model's settings name and its tokenizer.json does not have, by the setting.

    transformers gives such a token an id of its own, behind all others, for which the model has no weights.

    Raises:
        UserError: tokenizer.json cannot be read.
    """
    settings = directory / "tokenizer_config.json"
    if not (directory / FILE).is_file():
        return {}
    described = of_file(directory / FILE)
    try:
        stated = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    named = {name: stated.get(name) for name in NAMED}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and described.token_to_id(text) is None}


def for_engine(directory: Path, scratch: Path, *, trust_remote_code: bool) -> Path:
    """A directory from which AutoTokenizer, and so vLLM, loads what `load_tokenizer` does: the model's own, if that is one.

    Args:
        scratch: an empty directory, for a copy of the tokenizer's files that names no class and no model type.
    """
    if not (directory / FILE).is_file():
        return directory
    with _one_at_a_time:
        if _is_own(_automatic(directory, trust_remote_code), of_file(directory / FILE)):
            return directory
    for name in (FILE, *BESIDE):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, scratch / name)
    settings = scratch / "tokenizer_config.json"
    stated = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    stated.pop("auto_map", None)
    settings.write_text(json.dumps({**stated, "tokenizer_class": "TokenizersBackend"}), encoding="utf-8")
    (scratch / "config.json").write_text("{}", encoding="utf-8")
    return scratch


def _loaded(directory: Path, trust_remote_code: bool) -> Any:
    file = directory / FILE
    if not file.is_file():
        return _automatic(directory, trust_remote_code)
    described = of_file(file)
    tokenizer = _automatic(directory, trust_remote_code)
    if _is_own(tokenizer, described):
        return tokenizer
    own = _of_backend(directory, tokenizer, described)
    if not _is_own(own, described):
        raise UserError(
            f"{file}: transformers makes another tokenizer of it than the tokenizers library. Save the tokenizer anew: "
            "`PreTrainedTokenizerFast(tokenizer_file=...).save_pretrained(directory)`"
        )
    return own


def _automatic(directory: Path, trust_remote_code: bool) -> Any:
    """What transformers takes for the tokenizer of a model."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # of whatever kind the class's code raises
        raise UserError(f"{directory}: its tokenizer cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def _of_backend(directory: Path, other: Any, described: Tokenizer) -> Any:
    """The file's tokenizer with the settings beside it. What they leave open, the class that transformers chose says."""
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast.from_pretrained(directory)
    for name in NAMED:
        token = getattr(other, name, None)
        if getattr(own, name) is None and token is not None and described.token_to_id(str(token)) is not None:
            setattr(own, name, token)
    return own


def _is_own(tokenizer: Any, described: Tokenizer) -> bool:
    """Whether a tokenizer is the one of a file, or comes with code of its own that the user trusts."""
    if not type(tokenizer).__module__.startswith("transformers."):
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and all(_state(backend, part) == _state(described, part) for part in PARTS)


def _state(tokenizer: Tokenizer, part: str) -> bytes | None:
    found = getattr(tokenizer, part)
    return None if found is None else found.__getstate__()
