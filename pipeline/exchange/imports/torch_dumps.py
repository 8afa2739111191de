"""Files of torch.save, read with weights_only: tensors, numbers, texts, lists and objects of them, and no class of anyone's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common import memory
from pipeline.common.errors import DataError
from pipeline.exchange.imports.known import SourceRow
from pipeline.store.space import readable


def read(path: Path, name: str) -> Iterator[SourceRow]:
    """Every sample of a dump: of an object the list under `samples`, or the list itself.

    Raises:
        DataError: it holds other things than data, or would not fit into memory.
    """
    import torch

    if (size := path.stat().st_size) > memory.budget() // 4:
        raise DataError(f"{path}: has {readable(size)}, more than this machine holds as objects. Save fewer samples a file")
    try:
        dump = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: holds more than tensors, texts and numbers, and nothing else is ever unpickled: {what[:200]}. "
            "Write its samples as JSON lines where they were made"
        ) from None
    samples = dump.get("samples") if isinstance(dump, dict) else dump
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise DataError(f"{path}: expected an object with a list `samples`, found {type(dump).__name__}")
    of_all = {key: _plain(value) for key, value in dump.items() if key != "samples"} if isinstance(dump, dict) else {}
    for number, sample in enumerate(samples):
        values = {key: _plain(value) for key, value in sample.items()}
        yield SourceRow(name, "sample", number, {**values, "_dump": of_all}, path)


def _plain(value: Any) -> Any:
    """Tensors as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
