"""Evaluations: every row is a completion of the answers they were made from."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import polars as pl

from pipeline.evaluate.estimators import pass_at_k
from pipeline.evaluate.stage import deciding
from pipeline.look.audit.findings import Spot
from pipeline.look.audit.holdings import RESTORE, Held
from pipeline.look.audit.rows import MAKE_ANEW, RowBatch, Rule, check_rows, check_rules
from pipeline.look.audit.tables.checks import Checks, Facts, joined, same_figure
from pipeline.look.audit.tables.rollouts import column_of
from schemas import Rollouts
from schemas.rollouts import FAILED, ends_episode
from schemas.table import Table

KEY = ["prompt_id", "mode", "sample_index"]
ENDS = "ends"
COPIED = ("reward", "status", "completion_tokens")
MODES = ("sampled", "greedy")
SCORE = "score that decides"


class EvaluationChecks(Checks):
    """Checks of an evaluation artifact."""

    @cached_property
    def _answers(self) -> pl.DataFrame | None:
        """What the rows should hold, by the answers; None if those are not here whole."""
        parts = []
        for mode in MODES:
            if not any(parent.role == mode for parent in self.held.manifest.content.parents):
                continue
            answers = self.world.shelf.parent(self.held, mode)
            tokens = pl.col("completion_token_ids").list.len().cast(pl.Int32)
            columns = {name: pl.col(name) for name in ("prompt_id", "sample_index", "reward", "status")}
            columns[SCORE], columns[ENDS] = pl.col(deciding(self.held.recipe)), ends_episode()
            if answers is not None and not self._is_graded_by_it(answers):
                return None
            part = self.world.columns(answers, Rollouts, {**columns, "completion_tokens": tokens}) if answers else None
            if part is None:
                return None
            parts.append(part.filter(ENDS).drop("row", "file", ENDS).with_columns(mode=pl.lit(mode)))
        return pl.concat(parts) if parts else None

    def _is_graded_by_it(self, answers: Held) -> bool:
        """Whether answers have the score that says what is solved; reports one that they do not have."""
        score, stated = deciding(self.held.recipe), [column_of(one) for one in answers.recipe.get("reward") or ()]
        if score in ("reward", *stated):
            return True
        said: dict[str, Any] = {"remedy": MAKE_ANEW, "column": "content.recipe.solved_by"}
        self.spot("manifest.json").error("schema", "solved", expected=f"one of {', '.join(stated)}", found=score, **said)
        return False

    def check_artifact(self) -> None:
        self.world.ledger.count("schema", "evaluations compared with the answers", int(self._answers is not None), 1)

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        return {**super().facts(table), **{name: pl.col(name) for name in (*KEY, *COPIED, "solved")}}

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        check_rows(batch, table, spot)
        score = deciding(self.held.recipe)
        if score == "reward":
            check_rules(batch, self._solved(pl.col(score)), spot)
        if self._answers is None:
            return
        known = self._answers.rename({name: f"known_{name}" for name in COPIED}).with_columns(there=True)
        rows = RowBatch(batch.first, batch.frame.join(known, on=KEY, how="left", maintain_order="left"), batch.whole)
        absent, name = pl.col("there").is_null(), pl.format("prompt {}, {}, sample {}", *KEY)
        rules = [Rule(check="aligned", broken=absent, expected="a completion of the answers", found=name)]
        for column in COPIED:
            broken = ~absent & pl.col(column).ne_missing(pl.col(f"known_{column}"))
            rules.append(
                Rule(check="answers", broken=broken, expected="as the answers have it", found=pl.col(column), column=column)
            )
        if score != "reward":
            rules += self._solved(pl.col(SCORE))
        check_rules(rows, rules, spot)

    def _solved(self, score: pl.Expr) -> list[Rule]:
        """What is solved is what the recipe's threshold says of a score."""
        threshold, component = self.held.recipe.get("solved_at"), self.held.recipe.get("solved_by")
        if not isinstance(threshold, int | float):
            return []
        broken = pl.col("solved") != (score >= threshold).fill_null(False)
        expected = f"solved exactly where the {f'score of {component}' if component else 'reward'} is at least {threshold}"
        return [Rule(check="solved", broken=broken, expected=expected, found=pl.col("solved"), column="solved")]

    def conclude(self, table: type[Table], facts: Facts) -> None:
        self.check_unique(table, facts)
        rows = joined(facts)
        sampled = rows.filter(pl.col("mode") == "sampled")
        self.check_summary(
            {
                "prompts": sampled["prompt_id"].n_unique(),
                "reward_mean": sampled["reward"].mean(),
                "completion_tokens_mean": sampled["completion_tokens"].mean(),
                "failed": int(rows["status"].is_in(FAILED).sum()),
            }
        )
        self._check_solved(rows)
        if self._answers is not None:
            missing = self._answers.join(rows, on=KEY, how="anti", maintain_order="left")
            if not missing.is_empty():
                first: dict[str, Any] = missing.row(0, named=True)
                found = f"{len(missing)} answers without a row, the first of prompt {first['prompt_id']}, {first['mode']}"
                said: dict[str, Any] = {"remedy": MAKE_ANEW, "count": len(missing)}
                self.spot().error("schema", "aligned", expected="a row for every answer", found=found, **said)

    def _check_solved(self, rows: pl.DataFrame) -> None:
        """Report pass@k and greedy figures that are not those of the rows. Their intervals are drawn: that is a deep audit's."""
        if "greedy" in self.held.summary:
            greedy = rows.filter(pl.col("mode") == "greedy")
            self._check_value("greedy", self.held.summary["greedy"], greedy["solved"].mean())
        stated = self.held.summary.get("pass_at")
        if not isinstance(stated, dict):
            return
        sampled = rows.filter(pl.col("mode") == "sampled")
        prompts = sampled.group_by("prompt_id").agg(pl.col("solved").sum().cast(pl.Int64), samples=pl.len().cast(pl.Int64))
        for k in self.held.recipe.get("k") or [int(name) for name in stated]:
            self._check_value(f"pass_at.{k}", stated.get(str(k)), _pass_at(prompts, k))

    def _check_value(self, name: str, figure: Any, value: Any) -> None:
        """Report a figure with an interval whose value is another."""
        told = figure.get("value") if isinstance(figure, dict) else figure
        if not same_figure(told, value):
            said: dict[str, Any] = {"remedy": RESTORE, "column": f"content.summary.{name}.value"}
            self.spot("manifest.json").error("schema", "summary", expected=value, found=told, **said)


def _pass_at(prompts: pl.DataFrame, k: int) -> float | None:
    """Mean pass@k; None if a prompt has fewer completions, or there is none."""
    solved, samples = prompts["solved"].to_numpy(), prompts["samples"].to_numpy()
    return float(pass_at_k(solved, samples, k).mean()) if len(samples) and 1 <= k <= samples.min() else None
