"""Prompts: rendered as the recipe says, and apart from those they must be apart from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import polars as pl

from pipeline.look.audit.findings import Figure, Spot
from pipeline.look.audit.hygiene import prompts_figures, question_keys
from pipeline.look.audit.rows import RowBatch, Rule, check_rows, check_rules
from pipeline.look.audit.tables.checks import Checks, Facts, joined
from schemas import Prompts
from schemas.table import Table


class PromptsChecks(Checks):
    """Checks of a prompts artifact."""

    @cached_property
    def _others(self) -> pl.DataFrame | None:
        """Hashes of the questions that must not be here."""
        other = self.world.shelf.parent(self.held, "disjoint_from")
        return self.world.columns(other, Prompts, {"question": pl.col("question").hash()}) if other else None

    def check_artifact(self) -> None:
        _ = self._others

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        return {**super().facts(table), **(question_keys() if table is Prompts else {})}

    def figures(self, table: type[Table], rows: pl.DataFrame) -> Iterator[Figure]:
        if table is Prompts:
            yield from prompts_figures(self.held, rows)

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        check_rows(batch, table, spot)
        if table is not Prompts:
            return
        rules = []
        template = self.held.recipe.get("template")
        if isinstance(template, str) and self.held.recipe.get("chat") is False:
            before, _, after = template.partition("{question}")
            if "{question}" not in after:
                rendered = pl.concat_str(pl.lit(before), pl.col("question"), pl.lit(after))
                text, expected = pl.col("prompt_text"), f"the question in the template {template!r}"
                rules.append(Rule(check="template", broken=text != rendered, expected=expected, found=text, column="prompt_text"))
        if self._others is not None:
            shared = pl.col("question").hash().is_in(self._others["question"].implode())
            rules.append(
                Rule(
                    check="disjoint",
                    broken=shared,
                    expected="no question of the prompts it must be apart from",
                    found=pl.col("question"),
                    column="question",
                    remedy="Remove the question from one of the sources, and make both anew.",
                )
            )
        check_rules(batch, rules, spot)

    def conclude(self, table: type[Table], facts: Facts) -> None:
        super().conclude(table, facts)
        if table is Prompts:
            self.check_summary({"prompts": len(joined(facts))})
