"""The shape stage: file by file, since a group never spans two files."""

from __future__ import annotations

import polars as pl

from pipeline.algorithms import resolve
from pipeline.algorithms.cells.advantages import is_dead
from pipeline.artifacts import Artifact, Request, Store
from pipeline.artifacts.store import load_artifact
from pipeline.artifacts.tables import scan_table
from pipeline.config import ShapeConfig
from pipeline.process import Event, Reporter
from pipeline.shape.choices import shape_rows
from schemas import Rollouts, Shaped


def shape(spec: Event, reporter: Reporter) -> Event:
    """Make the shaped artifact of a spec.

    Args:
        spec: store, request, rollouts (path of the artifact), shape (a ShapeConfig), algorithm, algorithm_args.

    Returns:
        {"artifact": path}.
    """
    request = Request.from_json(spec["request"])
    rollouts = load_artifact(spec["rollouts"])
    choices = ShapeConfig.model_validate(spec["shape"])
    algorithm = resolve(spec["algorithm"], spec["algorithm_args"])
    with Store(spec["store"]).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        scan_table(rollouts, Rollouts)
        files = rollouts.tables("rollouts")
        for number, path in enumerate(files):
            if not work.has_table(path.name, Shaped):
                work.write_table(path.name, shape_rows(_scalars(path).collect(), choices, algorithm.advantage), Shaped)
            reporter.progress(number + 1, len(files), "files")
        return {"artifact": str(work.finish(_summary(rollouts, work.path)).path)}


def _scalars(path: object) -> pl.LazyFrame:
    scan = pl.scan_parquet(str(path))
    return scan.select("group_id", "sample_index", "status", "reward", tokens=pl.col("completion_token_ids").list.len())


def _summary(rollouts: Artifact, shaped: object) -> dict[str, object]:
    fates = pl.scan_parquet(f"{shaped}/part-*.parquet").select("keep", "drop_reason").collect()
    rewards = pl.scan_parquet(rollouts.tables("rollouts")).select("group_id", "reward").drop_nulls().collect()
    groups = rewards.group_by("group_id").agg(dead=is_dead(pl.col("reward")).first())
    reasons = fates.drop_nulls("drop_reason").group_by("drop_reason").len().sort("drop_reason")
    return {
        "kept": int(fates["keep"].sum()),
        "dropped": dict(reasons.iter_rows()),
        "groups": rollouts.summary["groups"],
        "zero_variance_groups": int(groups["dead"].sum()),
    }
