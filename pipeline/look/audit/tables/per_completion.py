"""Shaped tables, pairs and scores: one row per completion of a rollouts artifact, or per pair of its completions."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.common.lengths import length
from pipeline.look.audit.findings import Spot
from pipeline.look.audit.rows import MAKE_ANEW, RowBatch, Rule, check_rows, check_rules
from pipeline.look.audit.tables.checks import Checks, Facts, joined
from schemas import Credits, Pairs, Rollouts, Shaped
from schemas.rollouts import ends_episode
from schemas.table import Table

KEY = ["group_id", "sample_index"]
REWARDS = {
    "group_id": pl.col("group_id"),
    "sample_index": pl.col("sample_index"),
    "reward": pl.col("reward"),
    "ends": ends_episode(),
}
TOKENS = {
    "group_id": pl.col("group_id"),
    "sample_index": pl.col("sample_index"),
    "tokens": length("completion_token_ids"),
}


_FACTS: dict[type[Table], tuple[str, ...]] = {
    Shaped: ("keep", "drop_reason"),
    Credits: ("turn", "start", "length"),
    Pairs: ("chosen_index", "rejected_index"),
}


class ShapedChecks(Checks):
    """Checks of a shaped artifact."""

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        names = _FACTS[table]
        key = KEY[:1] if table is Pairs else KEY
        return {**super().facts(table), **{name: pl.col(name) for name in (*key, *names)}}

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        check_rows(batch, table, spot)
        if table is Shaped:
            zero = {name: ~pl.col("keep") & (pl.col(name) != 0) for name in ("advantage", "weight")}
            expected = "0, since the row is dropped"
            rules = [
                Rule(check="dropped", broken=broken, expected=expected, found=pl.col(name), column=name)
                for name, broken in zero.items()
            ]
            check_rules(batch, rules, spot)

    def conclude(self, table: type[Table], facts: Facts) -> None:
        self.check_unique(table, facts)
        rows = joined(facts)
        rollouts = self.world.shelf.parent(self.held, "rollouts")
        source = self.world.columns(rollouts, Rollouts, REWARDS) if rollouts else None
        self.world.ledger.count("schema", f"{table.title()} tables compared with their rollouts", int(source is not None), 1)
        if table is Shaped:
            # Completions are counted, of which those of several rows have a fate in each.
            counted = rows if source is None else rows.join(source.filter("ends"), on=KEY, how="semi")
            reasons = counted.drop_nulls("drop_reason").group_by("drop_reason").len().sort("drop_reason")
            self.check_summary({"kept": int(counted["keep"].sum()), "dropped": dict(reasons.iter_rows())})
        if source is not None and table is Shaped:
            check_aligned(self, rows, source, "a row for every completion of the rollouts")
        if source is not None and table is Credits:
            lost = rows.join(source, on=KEY, how="anti", maintain_order="left")
            report_rows(self, lost, "aligned", "a turn of a completion of the rollouts")
        if source is not None and table is Pairs:
            self._check_ends(rows, source)

    def _check_ends(self, pairs: pl.DataFrame, source: pl.DataFrame) -> None:
        """Both ends of a pair are completions of the rollouts."""
        for end in ("chosen_index", "rejected_index"):
            known = source.select(KEY[0], pl.col(KEY[1]).alias(end))
            lost = pairs.join(known, on=[KEY[0], end], how="anti", maintain_order="left")
            report_rows(self, lost, "pair", "a completion of the rollouts", column=end)


class ScoresChecks(Checks):
    """Checks of a scores artifact."""

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        return {**super().facts(table), **{name: pl.col(name) for name in KEY}, "length": length("logprobs")}

    def conclude(self, table: type[Table], facts: Facts) -> None:
        self.check_unique(table, facts)
        rows = joined(facts)
        everything = bool(rows["whole"].all()) if "whole" in rows.columns else False
        self.check_summary({"completions": len(rows), **({"tokens": int(rows["length"].sum())} if everything else {})})
        rollouts = self.world.shelf.parent(self.held, "rollouts")
        source = self.world.columns(rollouts, Rollouts, TOKENS if everything else REWARDS) if rollouts else None
        self.world.ledger.count("schema", f"{table.title()} tables compared with their rollouts", int(source is not None), 1)
        if source is None:
            return
        if not everything:
            lost = rows.join(source, on=KEY, how="anti", maintain_order="left")
            report_rows(self, lost, "aligned", "a completion of the rollouts")
            return
        source = source.filter(pl.col("tokens") > 0)
        check_aligned(self, rows, source, "a row for every completion of the rollouts that has tokens")
        both = rows.join(source.select(*KEY, "tokens"), on=KEY, how="inner", maintain_order="left")
        wrong = both.filter(pl.col("length") != pl.col("tokens"))
        report_rows(self, wrong, "aligned", "one logprob per completion token", column="logprobs")


def check_aligned(checks: Checks, rows: pl.DataFrame, source: pl.DataFrame, expected: str) -> None:
    """Report rows that belong to no completion of the rollouts, and completions that have no row."""
    lost = rows.join(source, on=KEY, how="anti", maintain_order="left")
    report_rows(checks, lost, "aligned", expected)
    missing = source.join(rows, on=KEY, how="anti", maintain_order="left")
    if not missing.is_empty():
        group, sample = missing.row(0, named=True)["group_id"], missing.row(0, named=True)["sample_index"]
        found = f"{len(missing)} completions without a row, the first group {group}, sample {sample}"
        checks.spot().error("schema", "aligned", expected=expected, found=found, remedy=MAKE_ANEW, count=len(missing))


def report_rows(checks: Checks, bad: pl.DataFrame, check: str, expected: str, *, column: str | None = None) -> None:
    """Report rows of `joined` facts, one finding per file."""
    for file, part in bad.group_by("file", maintain_order=True):
        first: dict[str, Any] = part.row(0, named=True)
        found = ", ".join(f"{name} {first[name]}" for name in first if name not in ("row", "file", "whole", "key"))
        checks.spot(str(file[0])).error(
            "schema", check, expected=expected, found=found, remedy=MAKE_ANEW, row=first["row"], column=column, count=len(part)
        )
