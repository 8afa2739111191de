"""Comparisons: every trial's figures are those of the checkpoint and the evaluation that it names."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import polars as pl

from pipeline.look.audit.findings import Spot
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.rows import MAKE_ANEW, RowBatch, Rule, check_rows, check_rules
from pipeline.look.audit.tables.checks import Checks, Facts, joined
from schemas import Comparison, Metrics
from schemas.table import Table

IDS = ("shaped_id", "checkpoint_id", "sampled_id", "greedy_id", "evaluation_id")
OF_STEPS = (
    *("loss", "grad_norm", "entropy", "kl_behavior", "ess", "clip_fraction_positive", "clip_fraction_negative"),
    *("ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99"),
)
"""Means over the steps of the last epoch."""
OF_TRIALS = ("greedy", "reward_mean", "completion_tokens_mean", "steps", *OF_STEPS)
"""Figures of the ranking that are means over an algorithm's seeds."""
ENDS = {"": "value", "_low": "low", "_high": "high"}
CLOSE = 1e-9
"""How far figures may differ by the order of summing, relative to their size."""


class ComparisonChecks(Checks):
    """Checks of a comparison artifact."""

    @cached_property
    def _last(self) -> int:
        return int((self.held.recipe.get("train") or {}).get("epochs") or 0)

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        names = ("label", "epoch", "status", "pass_at_1", *IDS, *OF_TRIALS) if table is Comparison else ("label", "seed", "epoch")
        return {**super().facts(table), **{name: pl.col(name) for name in names}}

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        check_rows(batch, table, spot)
        if table is not Comparison:
            return
        parents = {parent.id for parent in self.held.manifest.content.parents}
        rules = [
            Rule(
                check="trial",
                broken=pl.col(name).is_not_null() & ~pl.col(name).is_in(parents),
                expected="one of the comparison's parents",
                found=pl.col(name),
                column=name,
            )
            for name in ("checkpoint_id", "evaluation_id")
        ]
        check_rules(batch, rules, spot)
        for number, row in enumerate(batch.frame.iter_rows(named=True), start=batch.first):
            if row["status"] == "ok":
                self._check_trial(number, row, spot)

    def _check_trial(self, number: int, row: dict[str, Any], spot: Spot) -> None:
        figures = self._evaluated(self.world.shelf.get(row["evaluation_id"])) | self._trained(
            self.world.shelf.get(row["checkpoint_id"])
        )
        spot.ledger.count("schema", "trials compared with their checkpoints and evaluations", int(bool(figures)), 1)
        for column, value in figures.items():
            if not _close(row[column], value):
                said: dict[str, Any] = {"row": number, "column": column, "remedy": MAKE_ANEW}
                spot.error("schema", "trial", expected=f"{value}, as its parents have it", found=row[column], **said)

    def _evaluated(self, evaluation: Held | None) -> dict[str, Any]:
        if evaluation is None:
            return {}
        first = (evaluation.summary.get("pass_at") or {}).get("1") or {}
        greedy = evaluation.summary.get("greedy") or {}
        return {
            **{f"pass_at_1{end}": first.get(name) for end, name in ENDS.items()},
            **{f"greedy{end}": greedy.get(name) for end, name in ENDS.items()},
            **{name: evaluation.summary.get(name) for name in ("reward_mean", "completion_tokens_mean")},
        }

    def _trained(self, checkpoint: Held | None) -> dict[str, Any]:
        columns = {name: pl.col(name) for name in ("epoch", *OF_STEPS)}
        rows = self.world.columns(checkpoint, Metrics, columns) if checkpoint else None
        if rows is None:
            return {}
        last = rows.filter(pl.col("epoch") == pl.col("epoch").max())
        return {"steps": len(rows), **{name: last[name].mean() for name in OF_STEPS}}

    def conclude(self, table: type[Table], facts: Facts) -> None:
        self.check_unique(table, facts)
        rows = joined(facts)
        if table is not Comparison or rows.is_empty():
            return
        failed = rows.filter(pl.col("status") == "failed")
        self.check_summary({"trials": len(rows), "failed": len(failed)})
        for place, ranked in enumerate(self.held.summary.get("algorithms") or ()):
            self._check_ranked(f"content.summary.algorithms.{place}", ranked, rows)

    def _check_ranked(self, column: str, ranked: dict[str, Any], rows: pl.DataFrame) -> None:
        """A line of the ranking has the means of its algorithm's trials after the last epoch."""
        done = rows.filter(pl.col("label") == ranked.get("label"), pl.col("epoch") == self._last, pl.col("status") == "ok")
        found = {"seeds": len(done), **{name: done[name].cast(pl.Float64).mean() for name in ("pass_at_1", *OF_TRIALS)}}
        for name, value in found.items():
            if not _close(ranked.get(name), value):
                said: dict[str, Any] = {"column": f"{column}.{name}", "remedy": MAKE_ANEW}
                self.spot("manifest.json").error("schema", "summary", expected=value, found=ranked.get(name), **said)


def _close(stated: Any, value: Any) -> bool:
    if isinstance(stated, float | int) and isinstance(value, float | int):
        return abs(stated - value) <= CLOSE * max(1.0, abs(stated), abs(value))
    return bool(stated == value)
