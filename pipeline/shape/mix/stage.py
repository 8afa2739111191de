"""The mix stage: of each shaped table, keep the groups that were drawn. The others are dropped as `not_drawn`.

Whether a group is drawn follows from a hash of the seed, the iteration and its id, so it depends neither on files nor on the
order of rows.
"""

from __future__ import annotations

import hashlib

import polars as pl

from pipeline.run.process import Event, Reporter
from pipeline.shape.stage import fates
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.store import verified
from schemas import Credits, Pairs, Shaped


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
    recipe = work.request.recipe
    groups = read_table(shaped, Shaped, ["group_id", "keep"]).filter("keep")["group_id"].unique().to_list()
    chosen = pl.Series("group_id", drawn(groups, recipe["groups"], recipe["seed"], recipe["iteration"]), pl.String)
    files = shaped.tables("shaped")
    for path in files:
        if not work.has_table(path.name, Shaped):
            rows = pl.read_parquet(path, glob=False)
            work.write_table(path.name, mixed(rows, chosen, recipe["loss_weight"]), Shaped)
    for path in shaped.tables("pairs"):
        if not work.has_table(path.name, Pairs):
            pairs = pl.read_parquet(path, glob=False)
            work.write_table(path.name, pairs.filter(pl.col("group_id").is_in(chosen.implode())), Pairs)
    for path in shaped.tables("credits"):
        if not work.has_table(path.name, Credits):
            turns = pl.read_parquet(path, glob=False)
            work.write_table(path.name, turns.filter(pl.col("group_id").is_in(chosen.implode())), Credits)
    rows = pl.read_parquet([work.path / path.name for path in files], glob=False)
    return work.finish({**fates(rows), "groups": shaped.summary["groups"]})


def drawn(groups: list[str], count: int, seed: int, iteration: int) -> list[str]:
    """`count` of the groups, at random."""

    def draw(group: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{iteration}\0{group}".encode(), digest_size=16).digest()

    return sorted(groups, key=draw)[:count]


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
