"""The mix stage: of each shaped table, keep the groups that were drawn. The others are dropped as `not_drawn`.

Whether a group is drawn follows from a hash of the seed, the iteration and its id, so it depends neither on files nor on the
order of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.run.process import Event, Reporter
from pipeline.shape.sums import FateSums
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import verified
from schemas import Credits, Pairs, Shaped
from schemas.table import Table


def mix(spec: Event, reporter: Reporter) -> Event:
    """Make the shaped artifacts of a spec.

    Args:
        spec: store, jobs (each a request and the path of a shaped artifact).

    Returns:
        {"artifacts": paths, in the order of the jobs}.
    """
    paths = []
    for number, job in enumerate(spec["jobs"], start=1):
        with Store(spec["store"], reporter.note).work(Request.from_json(job["request"])) as work:
            made = work if isinstance(work, Artifact) else _draw(work, verified(job["shaped"]))
        paths.append(str(made.path))
        reporter.progress(number, len(spec["jobs"]), "artifacts")
    return {"artifacts": paths}


def _draw(work: Work, shaped: Artifact) -> Artifact:
    recipe, sums = work.request.recipe, FateSums()
    beside: dict[str, list[tuple[Path, type[Table]]]] = {}
    for kind in (Pairs, Credits):
        for path in shaped.tables(kind.title()):
            beside.setdefault(path.name.partition("-")[2], []).append((path, kind))
    with Lots(work.scratch / "lots", recipe["seed"], recipe["iteration"]) as lots:
        for path in shaped.tables("shaped"):
            lots.add(_kept_groups(path))
        last = lots.last(recipe["groups"])
        for path in shaped.tables("shaped"):
            chosen = pl.Series("group_id", lots.drawn(_kept_groups(path), last), pl.String)
            if not work.has_table(path.name, Shaped):
                rows = pl.read_parquet(path, glob=False)
                work.write_table(path.name, mixed(rows, chosen, recipe["loss_weight"]), Shaped)
            sums.add_fates(pl.read_parquet(work.path / path.name, glob=False))
            for other, table in beside.get(path.name.removeprefix("part-"), ()):
                if not work.has_table(other.name, table):
                    rows = pl.read_parquet(other, glob=False)
                    work.write_table(other.name, rows.filter(pl.col("group_id").is_in(chosen.implode())), table)
    return work.finish({**sums.fates(), "groups": shaped.summary["groups"]})


def _kept_groups(path: Path) -> list[str]:
    rows = pl.read_parquet(path, columns=["group_id", "keep"], glob=False)
    kept: list[str] = rows.filter("keep")["group_id"].unique().to_list()
    return kept


class Lots:
    """A number for every group, of which the smallest are drawn; sixteen bytes each, in a file. A context manager.

    Args:
        path: scratch.
    """

    def __init__(self, path: Path, seed: int, iteration: int) -> None:
        self._path, self._head = path, f"{seed}\0{iteration}\0"

    def __enter__(self) -> Lots:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def of(self, group: str) -> bytes:
        return hashlib.blake2b(f"{self._head}{group}".encode(), digest_size=16).digest()

    def add(self, groups: Iterable[str]) -> None:
        self._file.write(b"".join(self.of(group) for group in groups))

    def last(self, count: int) -> bytes:
        """The largest lot that is drawn, if `count` of all groups are."""
        self._file.flush()
        there = self._path.stat().st_size // 16
        if count >= there or not count:
            return b"\xff" * 16 if count else b""
        lots = np.memmap(self._path, ">u8", "r", shape=(there, 2))
        heads = np.array(lots[:, 0], np.uint64)
        heads.partition(count - 1)
        head = heads[count - 1]
        before = int((lots[:, 0] < head).sum())
        ends = np.sort(lots[lots[:, 0] == head, 1].astype(np.uint64))
        return int(head).to_bytes(8, "big") + int(ends[count - before - 1]).to_bytes(8, "big")

    def drawn(self, groups: Iterable[str], last: bytes) -> list[str]:
        return [group for group in groups if self.of(group) <= last]


def mixed(shaped: pl.DataFrame, chosen: pl.Series, loss_weight: float) -> pl.DataFrame:
    """The rows of a shaped table, with the kept ones of other groups dropped and the weights of the rest multiplied."""
    stays = pl.col("keep") & pl.col("group_id").is_in(chosen.implode())
    reason = pl.when(pl.col("keep") & ~stays).then(pl.lit("not_drawn")).otherwise(pl.col("drop_reason"))
    return shaped.with_columns(
        advantage=pl.when(stays).then(pl.col("advantage")).otherwise(0.0).cast(pl.Float32),
        weight=pl.when(stays).then(pl.col("weight") * loss_weight).otherwise(0.0).cast(pl.Float32),
        keep=stays,
        drop_reason=reason,
    )
