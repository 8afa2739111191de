"""The shape stage: file by file, since a group never spans two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.advantages import is_dead
from pipeline.algorithms.preference import Preference
from pipeline.artifacts import Artifact, Request, Store, Work
from pipeline.artifacts.store import verified
from pipeline.artifacts.tables import scan_table
from pipeline.config import ShapeConfig
from pipeline.process import Event, Reporter
from pipeline.shape.choices import KEPT, shape_rows, shaped_table, with_pairs
from schemas import Pairs, Rollouts, Shaped


def shape(spec: Event, reporter: Reporter) -> Event:
    """Make the shaped artifact of a spec.

    Args:
        spec: store, request, rollouts (path of the artifact), shape (a ShapeConfig), algorithm, algorithm_args.

    Returns:
        {"artifact": path}.
    """
    request = Request.from_json(spec["request"])
    with Store(spec["store"]).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        return {"artifact": str(_Shaping(spec, work).shape(reporter).path)}


class _Shaping:
    def __init__(self, spec: Event, work: Work) -> None:
        self.work = work
        self.rollouts = verified(spec["rollouts"])
        self.choices = ShapeConfig.model_validate(spec["shape"])
        self.algorithm: Algorithm = resolve(spec["algorithm"], spec["algorithm_args"])
        self.seed = work.request.recipe.get("seed", 0)
        scan_table(self.rollouts, Rollouts)
        self.files = self.rollouts.tables("rollouts")

    def shape(self, reporter: Reporter) -> Artifact:
        mean, std = self._moments() if self.algorithm.advantage.whole_snapshot else (0.0, 1.0)
        for number, path in enumerate(self.files):
            if not (self._paired(path) and self.work.has_table(path.name, Shaped)):
                self._write(path, mean, std)
            reporter.progress(number + 1, len(self.files), "files")
        return self.work.finish(self._summary())

    def _write(self, path: Path, mean: float, std: float) -> None:
        rows = self._rows(path)
        if isinstance(self.algorithm, Preference):
            rows, pairs = with_pairs(rows, self.algorithm.pairing)
            self.work.write_table(_pairs_name(path), pairs, Pairs)
        self.work.write_table(path.name, shaped_table(rows, self.algorithm, mean, std), Shaped)

    def _paired(self, path: Path) -> bool:
        """Whether a file's pairs are written, if the algorithm has any."""
        return not isinstance(self.algorithm, Preference) or self.work.has_table(_pairs_name(path), Pairs)

    def _rows(self, path: Path) -> pl.DataFrame:
        scalars = pl.scan_parquet(path).select(
            "group_id",
            "sample_index",
            "status",
            "reward",
            tokens=pl.col("completion_token_ids").list.len(),
            max_tokens=pl.lit(self.rollouts.recipe.get("sampling", {}).get("max_tokens", 0)),
        )
        return shape_rows(scalars.collect(), self.choices, self.algorithm, self.seed)

    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the advantage over all kept tokens, in a first pass over the files."""
        count = total = squares = 0.0
        for path in self.files:
            kept = self._rows(path).filter(KEPT)
            tokens, advantage = kept["tokens"].cast(pl.Float64), kept["advantage"].cast(pl.Float64)
            count += float(tokens.sum())
            total += float((tokens * advantage).sum())
            squares += float((tokens * advantage**2).sum())
        mean = total / max(count, 1.0)
        return mean, max(squares / max(count, 1.0) - mean**2, 0.0) ** 0.5

    def _summary(self) -> dict[str, Any]:
        fates = pl.scan_parquet(self.work.path / "part-*.parquet").select("keep", "drop_reason").collect()
        rewards = pl.scan_parquet(self.files).select("group_id", "reward").drop_nulls().collect()
        groups = rewards.group_by("group_id").agg(dead=is_dead(pl.col("reward")).first())
        reasons = fates.drop_nulls("drop_reason").group_by("drop_reason").len().sort("drop_reason")
        return {
            "kept": int(fates["keep"].sum()),
            "dropped": dict(reasons.iter_rows()),
            "groups": self.rollouts.summary["groups"],
            "zero_variance_groups": int(groups["dead"].sum()),
        }


def _pairs_name(path: Path) -> str:
    return path.name.replace("part-", "pairs-")
