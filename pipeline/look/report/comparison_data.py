"""What a comparison's page shows, read from its artifact and from the checkpoints it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.look.report.beside import busiest
from pipeline.store import Artifact, Store, read_table
from schemas import Comparison, ComparisonTiming, Metrics

KEY = ["label", "seed", "epoch"]
STAGES = ("shape", "score", "train", "generate", "evaluate")


@dataclass(frozen=True)
class Compared:
    """A comparison with the training curves of its trials."""

    artifact: Artifact
    artifacts: dict[str, Artifact]
    """Artifacts of the store, by id."""
    trials: pl.DataFrame
    """Rows of Comparison with those of ComparisonTiming beside them."""
    steps: pl.DataFrame
    """Metrics of every trial's longest training, with `label`, `seed`, and `x`: passes over the snapshot before the step."""

    @property
    def labels(self) -> list[str]:
        """Algorithms in the order in which they were asked for; their colors follow it."""
        return [algorithm["label"] for algorithm in self.artifact.recipe["algorithms"]]

    @property
    def ranking(self) -> list[dict[str, Any]]:
        ranking: list[dict[str, Any]] = self.artifact.summary["algorithms"]
        return ranking

    @property
    def ranked(self) -> list[str]:
        """Algorithms, the best first."""
        return [row["label"] for row in self.ranking]

    @property
    def before(self) -> dict[str, Any]:
        before: dict[str, Any] = self.artifact.summary["before"]
        return before

    @property
    def seeds(self) -> list[int]:
        seeds: list[int] = self.artifact.recipe["seeds"]
        return seeds

    def other_work(self, label: str) -> float | None:
        """The most cores that other work took beside an algorithm's trainings and answers; None where that is not known."""
        ids = self.trials.filter(pl.col("label") == label).select("checkpoint_id", "sampled_id").unpivot()["value"].drop_nulls()
        return busiest(self.artifacts[id] for id in ids if id in self.artifacts)

    def parent(self, role: str) -> Artifact | None:
        """A parent of the comparison, if the store still has it."""
        parent = next((parent for parent in self.artifact.manifest.content.parents if parent.role == role), None)
        return self.artifacts.get(parent.id) if parent else None


def read_compared(comparison: Artifact, store: Store) -> Compared:
    """Read the tables of a comparison; checkpoints that are no longer in the store are left out of the curves."""
    trials = read_table(comparison, Comparison)
    timing = read_table(comparison, ComparisonTiming)
    artifacts = {artifact.id: artifact for artifact in store.artifacts()}
    longest = trials.filter(pl.col("status") == "ok").group_by("label", "seed", maintain_order=True)
    frames = [
        _steps(artifacts[row["checkpoint_id"]], row)
        for row in longest.agg(pl.all().sort_by("epoch").last()).to_dicts()
        if row["checkpoint_id"] in artifacts
    ]
    return Compared(
        artifact=comparison,
        artifacts=artifacts,
        trials=trials.join(timing, on=KEY, how="left", maintain_order="left"),
        steps=pl.concat(frames) if frames else _NO_STEPS,
    )


def _steps(checkpoint: Artifact, row: dict[str, Any]) -> pl.DataFrame:
    place = pl.col("step") - pl.col("step").min().over("epoch")
    return (
        read_table(checkpoint, Metrics)
        .sort("step")
        .with_columns(label=pl.lit(row["label"]), seed=pl.lit(row["seed"]), x=pl.col("epoch") + place / pl.len().over("epoch"))
    )


_TYPES = {name: column.dtype for name, column in Metrics.columns().items()}
_NO_STEPS = pl.DataFrame(schema={**_TYPES, "label": pl.String, "seed": pl.Int32, "x": pl.Float64})


def over_seeds(compared: Compared, label: str, column: str, points: int = 200) -> pl.DataFrame:
    """x, and mean, least and greatest of a column over seeds; longer curves are averaged into that many points.

    Steps at which no seed has a finite value are left out.
    """
    rows = compared.steps.filter(pl.col("label") == label).select("x", "step", "seed", value=pl.col(column).cast(pl.Float64))
    rows = rows.filter(pl.col("value").is_finite())
    stride = max(-(-(int(rows["step"].max() or 0) + 1) // points), 1)  # type: ignore[arg-type]
    by_seed = rows.group_by("seed", bucket=pl.col("step") // stride).agg(pl.col("x").mean(), pl.col("value").mean())
    return (
        by_seed.group_by("bucket")
        .agg(pl.col("x").mean(), mean=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max())
        .sort("bucket")
    )


def by_epoch(compared: Compared, label: str, column: str) -> pl.DataFrame:
    """x (passes over the snapshot), and mean, least and greatest of a trial's figure over seeds, from before training on."""
    rows = compared.trials.filter(pl.col("label") == label, pl.col("status") == "ok").drop_nulls(column)
    value = pl.col(column).cast(pl.Float64)
    frame = rows.group_by(x=pl.col("epoch").cast(pl.Float64)).agg(mean=value.mean(), low=value.min(), high=value.max()).sort("x")
    start = compared.before.get(column)
    if start is None or frame.is_empty():
        return frame
    first = pl.DataFrame({"x": [0.0], "mean": [start], "low": [start], "high": [start]})
    return pl.concat([first, frame])
