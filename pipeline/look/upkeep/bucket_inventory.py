"""What lies in a store in a bucket.

Nothing there is half written: a killed process leaves only resume state that it had no more use for. Locks stay: an object
cannot be removed on the condition that nobody has taken it since, and one is a few hundred bytes.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

from pipeline.look.upkeep.inventory import KEY, Item, StoreFolder
from pipeline.store.bucket_files import AT_ONCE
from pipeline.store.layout import ASIDE, LOCKS, MANIFEST, SCRATCH
from pipeline.store.mirror import BucketBackend
from schemas.manifest import Kind


class BucketInventory:
    """A store in a bucket."""

    def __init__(self, backend: BucketBackend) -> None:
        self._backend = backend

    @property
    def url(self) -> str:
        return self._backend.url

    def folders(self) -> list[StoreFolder]:
        found = self._grouped("", 2)
        return [
            StoreFolder(name, sum(files.values()), MANIFEST in files)
            for name, files in found.items()
            if name.partition("/")[0] in get_args(Kind) and KEY.fullmatch(name.partition("/")[2])
        ]

    def temporary(self) -> list[Item]:
        found = []
        for name, files in self._grouped("", 2).items():
            sizes = [size for path, size in files.items() if path.startswith(f"{SCRATCH}/")]
            if MANIFEST in files and sizes and name.partition("/")[0] in get_args(Kind):
                found.append(Item(f"{name}/{SCRATCH}", "temporary", sum(sizes)))
        return found

    def set_aside(self) -> list[Item]:
        return [Item(name, "set aside", sum(files.values())) for name, files in self._grouped(f"{ASIDE}/", 4).items()]

    def locks(self) -> tuple[list[str], list[tuple[Item, str]]]:
        names = [name.removesuffix(".lock") for name in self._backend.sizes(f"{LOCKS}/") if name.endswith(".lock")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            holders = list(pool.map(self._holder, names))
        return [f"{name}: {holder}" for name, holder in zip(names, holders, strict=True) if holder is not None], []

    def _holder(self, name: str) -> str | None:
        kind, _, key = name.partition("-")
        return self._backend.holder(kind, key)

    def remove(self, item: Item) -> bool:
        if item.reason not in ("unfinished", "unreferenced"):
            self._backend.delete(f"{item.name}/")
            return True
        kind, _, key = item.name.partition("/")
        if self._backend.holder(kind, key) is not None:
            return False
        with self._backend.locked(kind, key) as place:
            self._backend.delete(f"{item.name}/")
            shutil.rmtree(place.path, ignore_errors=True)
        return True

    def _grouped(self, prefix: str, depth: int) -> Mapping[str, Mapping[str, int]]:
        """Objects below a prefix: sizes by path, by folder of that depth."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for path, size in self._backend.sizes(prefix).items():
            parts = f"{prefix}{path}".split("/", depth)
            if len(parts) > depth:
                found["/".join(parts[:depth])][parts[depth]] = size
        return found
