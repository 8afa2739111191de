"""Models in one GGUF file, made into plain checkpoints: weights without blocks, tokenizer, chat template and settings.

    <cache>/models/<name>-<hash of the file>-<number format>/   config.json, model.safetensors, tokenizer.json, ..., made-from

It is made once and kept; it may be deleted while nothing runs. `made-from` says what of. Stages read the copy in the store,
whose recipe names the GGUF file's hash.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, writing
from pipeline.sources.readers import LFS
from pipeline.sources.weights import silent_transformers
from pipeline.store.cache import cache_directory
from pipeline.store.files import write_text
from pipeline.store.remembered import known_sha256
from pipeline.store.space import refuse_full

SUFFIX = ".gguf"
MAGIC = b"GGUF"
MADE_FROM = "made-from"
"""File of a directory that was made here; not one of the model's."""
PARTS_OF_ONE = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2}
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Values of tokenizer.ggml.pre whose texts are cut around every digit, and then as GPT-2's. transformers does the latter alone,
so that spaces before a number make other tokens than those the model knows."""
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de")


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX and path.is_file()


def converted(path: Path, dtype: str) -> Path:
    """The directory of a plain checkpoint with what a GGUF file holds; made now if it is not there yet.

    Args:
        dtype: number format of the weights, float32 or bfloat16.

    Raises:
        UserError: the file is not whole, or of an architecture or with a tokenizer that transformers does not read.
        StageFailed: the disk is full.
    """
    _refuse_other(path)
    file = {"file": path.name, "sha256": known_sha256(path), "dtype": dtype}
    place = cache_directory() / "models" / f"{path.stem}-{file['sha256'][:16]}-{dtype}"
    if (place / MADE_FROM).is_file():
        return place
    print(f"{path}: a GGUF file; its weights are made plain ({dtype}) in {place}", file=sys.stderr, flush=True)
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".building-") as building:
            _make(path, Path(building) / "model", dtype, file)
            if place.is_dir() and not (place / MADE_FROM).is_file():
                shutil.rmtree(place)
            try:
                (Path(building) / "model").rename(place)
            except OSError:
                if not (place / MADE_FROM).is_file():  # else another process was faster
                    raise
    return place


def made_from(directory: Path) -> dict[str, Any] | None:
    """What a directory was made from: {file, sha256, dtype, types, ...}; None of any other directory."""
    try:
        found = json.loads((directory / MADE_FROM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "sha256" in found else None


def described(made: dict[str, Any]) -> str:
    """What was done, such as "from model.gguf: 210 tensors of Q4_1, 61 of F32, all made float32".

    >>> described({"file": "m.gguf", "dtype": "float32", "types": {"Q4_1": 210, "F32": 61}})
    'from m.gguf: 210 tensors of Q4_1, 61 of F32, all made float32'
    """
    first, *others = (
        f"{count} {'' if place else 'tensors '}of {name}" for place, (name, count) in enumerate(made["types"].items())
    )
    text = f"from {made['file']}: {', '.join([first, *others])}, all made {made['dtype']}"
    return text + (f"; {made['remark']}" if made.get("remark") else "")


def _refuse_other(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(max(len(MAGIC), len(LFS)))
    if head[: len(LFS)] == LFS:
        raise UserError(f"{path}: it is a Git LFS pointer, `git lfs pull` fetches the file")
    if head[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: not a GGUF file (it does not begin with {MAGIC.decode()})")
    if PARTS_OF_ONE.search(path.name):
        raise UserError(
            f"{path}: one of several parts of a model. Put them together: `llama-gguf-split --merge FIRST WHOLE.gguf`"
        )


def _make(path: Path, place: Path, dtype: str, file: dict[str, str]) -> None:
    """Write the checkpoint, `made-from` last."""
    head = _GgufHead(path)
    refuse_full(place, head.weights * BYTES_PER_WEIGHT[dtype], "the model made plain")
    with silent_transformers():
        try:
            tokenizer, remark = _tokenizer(path, head)
            model = _model(path, dtype)
        except UserError:
            raise
        except Exception as error:  # of whatever kind the reader of this architecture raises
            raise UserError(f"{path}: transformers cannot read this GGUF file: {' '.join(str(error).split())[:300]}") from None
        tokenizer.save_pretrained(place)
        model.save_pretrained(place, safe_serialization=True)
    write_text(place / MADE_FROM, json.dumps({**file, "types": head.types, "license": head.license, "remark": remark}))


class _GgufHead:
    """What a GGUF file says beside its weights."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: it cannot be read.
        """
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
            self.types = dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())
            self.weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
            said = (reader.fields.get(name) for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "general.license"))
            self.tokenizer, self.split, self.license = (field.contents() if field else None for field in said)
        except Exception as error:  # what its parser meets in bytes of any kind
            raise UserError(f"{path}: not whole: {' '.join(str(error).split())[:300]}. Copy or download it again") from None


def _tokenizer(path: Path, head: _GgufHead) -> tuple[Any, str | None]:
    """The tokenizer, which cuts texts as the file says; and a remark where that cannot be told."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    backend = tokenizer.backend_tokenizer
    plain = json.loads(backend.to_str())["pre_tokenizer"] or {}
    if head.tokenizer != "gpt2" or plain.get("type") != "ByteLevel" or head.split in AS_GPT2:
        return tokenizer, None
    if head.split in SINGLE_DIGITS:
        around = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(around)
        return tokenizer, None
    return tokenizer, f"it cuts texts as {head.split!r}, which is not known here: they are cut as GPT-2's"


def _model(path: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM
    model, found = load.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{path}: it holds no {', '.join(missing[:4])}, which {type(model).__name__} needs")
    # With these, transformers takes the plain weights for quantized ones, and would not save them.
    model.hf_quantizer, model.is_quantized = None, False
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.name_or_path = ""
    return model
