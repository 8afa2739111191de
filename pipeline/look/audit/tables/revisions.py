"""Revisions: rollouts in which every own completion has a group to itself, and the weights of their tokens."""

from __future__ import annotations

import polars as pl

from pipeline.common.lengths import length
from pipeline.look.audit.tables.checks import Facts, joined
from pipeline.look.audit.tables.per_completion import KEY, TOKENS, check_aligned, report_rows
from pipeline.look.audit.tables.rollouts import RolloutsChecks
from schemas import Revisions, Rollouts
from schemas.table import Table


class RevisionsChecks(RolloutsChecks):
    """Checks of a revisions artifact."""

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        if table is not Revisions:
            return super().facts(table)
        return {**{name: pl.col(name) for name in (*KEY, "role")}, "length": length("token_weights")}

    def conclude(self, table: type[Table], facts: Facts) -> None:
        if table is not Revisions:
            super().conclude(table, facts)
            return
        rows = joined(facts)
        source = self.world.columns(self.held, Rollouts, TOKENS)
        self.check_summary({name: int((rows["role"] == role).sum()) for name, role in _COUNTED.items()})
        if source is None:
            return
        check_aligned(self, rows, source, "a row for every completion beside it")
        both = rows.join(source.select(*KEY, "tokens"), on=KEY, how="inner", maintain_order="left")
        wrong = both.filter(pl.col("length") != pl.col("tokens"))
        report_rows(self, wrong, "aligned", "one weight per completion token", column="token_weights")
        misplaced = rows.filter((pl.col("role") == "own") != (pl.col("sample_index") == 0))
        report_rows(self, misplaced, "roles", "the own completion as sample 0, and no other", column="role")


_COUNTED = {"revised": "revised", "references": "reference"}
