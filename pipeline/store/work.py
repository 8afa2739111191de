"""An artifact in the making."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from pipeline.common.errors import DataError, StageFailed, writing
from pipeline.store.artifact import Artifact, Request, open_artifact
from pipeline.store.files import TEMPORARY, sync, whole_file
from pipeline.store.layout import LARGEST_MANIFEST, SCRATCH, in_order
from pipeline.store.parquet import write_parquet
from pipeline.store.place import Place
from pipeline.store.provenance import describe_process
from pipeline.store.remembered import known_sha256
from schemas.manifest import Content, File, Manifest, Provenance, digest, sealed
from schemas.table import Table


class Work:
    """A directory without a manifest yet. Files appear in it whole or not at all; what is there after a crash is kept."""

    def __init__(self, place: Place, request: Request) -> None:
        self.place = place
        self.path = place.path
        self.request = request
        self._tables: dict[str, type[Table]] = {}
        self._started = time.monotonic()
        with writing(self.path):
            place.begin(self.scratch)
            for leftover in self.path.rglob(TEMPORARY + "*"):
                leftover.unlink(missing_ok=True)

    def require_space(self, needed: float, what: str) -> None:
        """Refuse to start what will not fit on the disk.

        Args:
            needed: bytes, an estimate on the low side.
            what: will take them, such as "rollouts of 1,024 completions".

        Raises:
            StageFailed: there is less room than that.
        """
        there = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        self.place.require_space(max(int(needed) - there, 0), what)

    @property
    def scratch(self) -> Path:
        """Room for resume state; not part of the artifact."""
        return self.path / SCRATCH

    def keep(self, point: Path) -> None:
        """Keep a resume point (a directory in `scratch`, whole) against the loss of this machine, where the store can."""
        self.place.keep(point)

    def has_table(self, name: str, table: type[Table]) -> bool:
        """Whether an earlier attempt finished this table file; if so it is part of the artifact."""
        if not self.place.recover(name):
            return False
        self._tables[name] = table
        return True

    def write_table(self, name: str, frame: pl.DataFrame, table: type[Table]) -> Path:
        """Write a Parquet file after checking that every row fits the table.

        Raises:
            DataError: a row does not fit; nothing is written.
        """
        write_table(self.path / name, frame, table)
        self._tables[name] = table
        self.place.publish(name)
        return self.path / name

    def finish(
        self, summary: dict[str, Any], *, outside_id: tuple[str, ...] = (), notes: dict[str, Any] | None = None
    ) -> Artifact:
        """Hash every file, write the manifest, and so make the artifact exist.

        Args:
            summary: figures worth knowing without opening a file.
            outside_id: files that may differ between equal results; listed under provenance.
            notes: what the stage saw of its machine.

        Raises:
            StageFailed: there are more files than a manifest may list.
        """
        found = (path for path in self.path.rglob("*") if path.is_file() and not path.is_relative_to(self.scratch))
        paths = sorted(found, key=lambda path: path.with_name(in_order(path.name)))
        files = [self._file(path) for path in paths]
        content = Content(
            kind=self.request.kind,
            key=self.request.key,
            stage=self.request.stage,
            parents=self.request.parents,
            recipe=self.request.recipe,
            files=tuple(file for file in files if file.path not in outside_id),
            summary=summary,
        )
        provenance = Provenance(
            seconds=round(time.monotonic() - self._started, 3),
            files=tuple(file for file in files if file.path in outside_id),
            notes=notes or {},
            **describe_process(),
        )
        manifest = Manifest(id=digest(content.model_dump(mode="json")), content=content, provenance=provenance)
        names = [file.path for file in files]
        text = sealed(manifest.model_dump_json(indent=2) + "\n")
        if len(text.encode()) > LARGEST_MANIFEST:
            raise StageFailed(
                f"{self.path}: its {len(names):,} files make a manifest of more than {LARGEST_MANIFEST >> 20} MiB, which nobody "
                "reads. Make fewer files of more rows (generate.shard_groups)"
            )
        with writing(self.path):
            self.place.commit(names, text, self.scratch)
        return open_artifact(self.place)

    def _file(self, path: Path) -> File:
        name = path.relative_to(self.path).as_posix()
        sync(path)
        table = self._tables.get(name)
        rows = pq.read_metadata(path).num_rows if table else None
        title = f"{table.title()}/{table.version}" if table else None
        return File(path=name, bytes=path.stat().st_size, sha256=known_sha256(path), rows=rows, table=title)


def write_table(path: Path, frame: pl.DataFrame, table: type[Table]) -> None:
    """Write a frame as Parquet (zstd) with the table's descriptions, after checking every row.

    Raises:
        DataError: names the first row that does not fit, and why.
    """
    bad = table.check(frame).bad
    if not bad.is_empty():
        first = bad.row(0, named=True)
        raise DataError(
            f"{path}, row {first['row']}: {first['reasons']} ({len(bad)} of {len(frame)} rows do not fit table {table.title()})"
        )
    with whole_file(path) as temporary:
        write_parquet(temporary, frame, table)
