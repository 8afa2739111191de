"""Rollouts: groups that are whole, seeds that differ, rewards that add up, tokens that spell the text they stand beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.common.lengths import length
from pipeline.environments.registry import rows_of_episode
from pipeline.look.audit.findings import Figure, Spot
from pipeline.look.audit.hygiene import rollouts_figures
from pipeline.look.audit.rows import MAKE_ANEW, RowBatch, Rule, TableFile, check_rows, check_rules
from pipeline.look.audit.tables.checks import Checks, Facts, joined
from pipeline.look.audit.tables.copies import Copies
from pipeline.look.audit.tables.spelling import SPELLED, Spelling
from pipeline.look.audit.tables.turns import TURN_FACTS, check_turns, under_mask
from pipeline.look.audit.tokens import CheckpointDecoder, vocabulary_of
from pipeline.rewards.registry import BUILTINS, UNIT_SCORES
from schemas import Origins, Prompts, Rollouts, SetAside, Turns
from schemas.rollouts import CUT, FAILED, ends_episode
from schemas.table import Table

TEXTS = 64
"""Completions of a batch whose text is decoded again, unless the audit is deep: then all."""
WEIGHTED_SUM = 1e-9
"""How far a reward may lie from the sum of its weighted components, relative to their size."""
ROUNDING = 1e-9
"""How far above 1 the score of a built-in may lie that adds shares up."""
COPIED = ("prompt_id", "answer", "prompt_text")
"""What a completion's row holds of its prompt."""
IDS, LOGPROBS = pl.col("completion_token_ids"), pl.col("behavior_logprobs")
LACKING = {
    "without_logprobs": LOGPROBS.is_null(),
    "without_sampling": pl.any_horizontal(pl.col("temperature", "top_p", "top_k", "min_p").is_null()),
    "scored": pl.col("logprobs_mode") == "scored",
}
"""What an import may lack, by the name of its count in the summary."""


class RolloutsChecks(Checks):
    """Checks of a rollouts artifact."""

    @cached_property
    def _generated(self) -> bool:
        """Whether the generate stage wrote it: then its recipe says how."""
        return self.held.manifest.content.stage.startswith("generate/")

    @property
    def _sampling(self) -> dict[str, Any]:
        return self.held.recipe.get("sampling") or {}

    @property
    def _environment(self) -> dict[str, Any] | None:
        """Of episodes."""
        return self.held.recipe.get("environment")

    @cached_property
    def _policy(self) -> Any:
        return self.world.shelf.parent(self.held, "policy")

    @cached_property
    def _vocabulary(self) -> int | None:
        return vocabulary_of(self._policy, self.world) if self._policy else None

    @cached_property
    def _decoder(self) -> CheckpointDecoder | None:
        return CheckpointDecoder.of(self._policy, self.world) if self._policy else None

    @cached_property
    def _prompts(self) -> pl.DataFrame | None:
        """Hashes of each prompt's answer and text by that of its id."""
        parent = self.world.shelf.parent(self.held, "prompts")
        key, *copied = COPIED
        columns = {"key": pl.col(key).hash(), **{f"known_{name}": pl.col(name).hash() for name in copied}}
        found = self.world.columns(parent, Prompts, columns) if parent else None
        return None if found is None else found.drop("row", "file").unique("key")

    def check_artifact(self) -> None:
        """Look up everything shared by the files before threads need it."""
        looked = {"policy's vocabulary": self._vocabulary, "policy's tokenizer": self._decoder, "prompts": self._prompts}
        for what, found in looked.items():
            self.world.ledger.count("schema", f"rollouts compared with their {what}", 0 if found is None else 1, 1)
        Copies(self).check_files()

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        if table is Turns:
            return TURN_FACTS
        if table is not Rollouts:
            return super().facts(table) | ({"tokens": pl.col("tokens")} if table is Origins else {})
        names = ("group_id", "sample_index", "seed", "reward", "status", "policy_version")
        lengths = {"tokens": length(IDS), "prompt_tokens": length("prompt_token_ids")}
        return {
            **{name: pl.col(name) for name in names},
            **lengths,
            "ends": ends_episode(),
            **LACKING,
            "prompt": pl.col("prompt_id").hash(),
            "text": pl.col("completion_text").hash(),
        }

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        check_rows(batch, table, spot)
        if table is not Rollouts:
            return
        rules = [*self._origin(batch), *self._rewards(batch, spot)]
        rules += self._tokens() if batch.whole else ()
        check_rules(batch, rules, spot)
        self._check_modes(batch, spot)
        self._check_prompts(batch, spot)

    def check_some(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        if table is Rollouts and batch.whole and self._decoder is not None:
            rows = batch.frame.with_row_index("row", batch.first).select("row", *SPELLED)
            if not self.world.deep:
                rows = rows.gather_every(max(1, len(rows) // TEXTS))
            spelling = Spelling(
                self._decoder, tuple(self._sampling.get("stop") or ()), spot, bool(self._sampling.get("keep_stop_text"))
            )
            spelling.check_texts(rows)
            if (prompts := self.world.shelf.parent(self.held, "prompts")) and self._generated:
                spelling.check_prompts(rows, special=not prompts.recipe.get("chat"))
            self.world.ledger.count("schema", "completion texts decoded again", len(rows), len(batch.frame))

    def _origin(self, batch: RowBatch) -> Iterator[Rule]:
        """Who answered, and how it was sampled, as the manifest has it."""
        if not self._generated:
            return
        ids = {parent.role: parent.id for parent in self.held.manifest.content.parents}
        wanted = {"policy_id": ids.get("policy"), "policy_version": self.held.summary.get("policy_version")}
        wanted |= {name: self._sampling.get(name) for name in ("temperature", "top_p", "top_k", "min_p")}
        for column, value in wanted.items():
            if value is None:
                continue
            broken = pl.col(column).ne_missing(pl.lit(value, dtype=batch.frame.schema[column]))
            expected = f"{value}, as in the manifest"
            yield Rule(check="origin", broken=broken, expected=expected, found=pl.col(column), column=column)
        suffix, group = f"@{self.held.manifest.content.key[:8]}", pl.col("group_id")
        yield Rule(check="group name", broken=~group.str.ends_with(suffix), expected=f"…{suffix}", found=group, column="group_id")
        failed = pl.col("status").is_in(FAILED)
        cut = pl.col("finish_reason").is_in(CUT).fill_null(False)
        yield Rule(
            check="status",
            broken=~failed & (cut != (pl.col("status") == "truncated")),
            expected=f"status truncated exactly where finish_reason is one of {', '.join(CUT)}",
            found=pl.col("status"),
            column="status",
        )

    def _rewards(self, batch: RowBatch, spot: Spot) -> Iterator[Rule]:
        """Components add up to the reward, and those of built-in graders lie between 0 and 1."""
        components = {column_of(component): component for component in self.held.recipe.get("reward") or ()}
        for name in components.keys() - set(batch.frame.columns):
            said = {"expected": f"the column {name}, a component of the recipe", "found": "no such column"}
            spot.error("schema", "rewards", **said, remedy=MAKE_ANEW, column=name)
            return
        if not components:
            return
        weighted = [float(component.get("weight", 1.0)) * _scored(name, component) for name, component in components.items()]
        total, size = pl.sum_horizontal(weighted, ignore_nulls=False), pl.sum_horizontal([part.abs() for part in weighted])
        reward = pl.col("reward")
        yield Rule(
            check="reward sum",
            broken=reward.is_not_null() & ((reward - total).abs() > WEIGHTED_SUM * (1 + size)).fill_null(True),
            expected="the sum of the weighted components",
            found=reward,
            column="reward",
        )
        for name, component in components.items():
            if component.get("grader") in UNIT_SCORES:
                outside = ~pl.col(name).is_between(0.0, 1.0 + ROUNDING)
                yield Rule(check="reward range", broken=outside, expected="between 0 and 1", found=pl.col(name), column=name)

    def _tokens(self) -> Iterator[Rule]:
        """Tokens lie in the vocabulary, completions within their limit, and every drawn token has its logprob."""
        if self._vocabulary is not None:
            for column in ("prompt_token_ids", "completion_token_ids"):
                largest = pl.col(column).list.max()
                expected = f"token ids below {self._vocabulary}, the policy's vocabulary"
                yield Rule(
                    check="vocabulary", broken=largest >= self._vocabulary, expected=expected, found=largest, column=column
                )
        if not self._generated:
            return
        limit, tokens = (self._environment or self._sampling).get("max_tokens"), length(IDS)
        if isinstance(limit, int):
            expected = f"at most max_tokens={limit} tokens"
            yield Rule(check="length", broken=tokens > limit, expected=expected, found=tokens, column="completion_token_ids")
        yield under_mask()
        yield Rule(
            check="logprobs",
            broken=(pl.col("status") != "engine_error") & LOGPROBS.is_null(),
            expected="logprobs, since the engine did not fail",
            found=pl.lit("null"),
            column="behavior_logprobs",
        )

    def _check_modes(self, batch: RowBatch, spot: Spot) -> None:
        unknown = (batch.frame["logprobs_mode"] == "unknown").arg_true()
        if len(unknown):
            report = spot.warning if self._generated else spot.note
            report(
                "schema",
                "logprobs_mode",
                expected="logprobs whose meaning is recorded",
                found="unknown",
                remedy="Score them with the checkpoint that generated them before a method needs the ratio.",
                row=batch.first + int(unknown[0]),
                column="logprobs_mode",
                count=len(unknown),
            )

    def _check_prompts(self, batch: RowBatch, spot: Spot) -> None:
        """Every completion answers a prompt of the prompts artifact, with its text and reference answer."""
        if self._prompts is None:
            return
        asked = batch.frame.select(*COPIED, key=pl.col("prompt_id").hash())
        rows = RowBatch(batch.first, asked.join(self._prompts, on="key", how="left", maintain_order="left"), batch.whole)
        absent = pl.col("known_prompt_text").is_null()
        rules = [
            Rule(
                check="prompt",
                broken=absent,
                expected="a prompt of the prompts artifact",
                found=pl.col("prompt_id"),
                column="prompt_id",
            )
        ]
        for column in COPIED[1:]:
            broken = ~absent & (pl.col(column).hash() != pl.col(f"known_{column}"))
            expected = f"the {column} that the prompts artifact has for this prompt"
            rules.append(Rule(check="prompt", broken=broken, expected=expected, found=pl.col(column), column=column))
        check_rules(rows, rules, spot)

    def check_unread(self, opened: TableFile, spot: Spot) -> None:
        """What the file's own statistics say of row groups whose lists are not read."""
        if opened.table is not Rollouts:
            return
        for first, rows, metadata in opened.unread():
            self.world.ledger.count("schema", "rollouts whose token lists were read", 0, rows)
            leaves = {name.split(".")[0]: column for name, column in _leaves(metadata)}
            ids, logprobs = leaves["completion_token_ids"], leaves["behavior_logprobs"]
            said: dict[str, Any] = {"remedy": MAKE_ANEW, "row": first, "count": rows}
            if _least_and_greatest(logprobs)[1] > 0:
                found = f"up to {_least_and_greatest(logprobs)[1]} in these rows"
                spot.error("schema", "rows", expected="logprobs of at most 0", found=found, column="behavior_logprobs", **said)
            if _least_and_greatest(logprobs)[0] == -float("inf"):
                spot.error("schema", "rows", expected="finite logprobs", found="-inf", column="behavior_logprobs", **said)
            least, greatest = _least_and_greatest(ids)
            if least < 0 or (self._vocabulary is not None and greatest >= self._vocabulary):
                expected, found = f"token ids from 0 to {self._vocabulary}", f"{least} to {greatest} in these rows"
                spot.error("schema", "vocabulary", expected=expected, found=found, column="completion_token_ids", **said)

    def conclude(self, table: type[Table], facts: Facts) -> None:
        rows = joined(facts)
        if table in (Rollouts, Origins):
            Copies(self).check_rows(table)
        if table is Turns:
            check_turns(self, rows)
        if table is not Rollouts:
            super().conclude(table, facts)
            self.check_summary(dict(self._figures_beside(table, rows)))
        elif not rows.is_empty():
            self._check_groups(rows)
            self._check_seeds(rows)
            self.check_summary(dict(self._figures(rows)))

    def figures(self, table: type[Table], rows: pl.DataFrame) -> Iterator[Figure]:
        if table is Rollouts and self.held.recipe.get("purpose", "train") == "train":
            yield from rollouts_figures(self.held, rows.filter("ends"))

    def _check_groups(self, rows: pl.DataFrame) -> None:
        """Groups are whole, in one file, and of one prompt."""
        wanted = self.held.recipe.get("samples") if self._generated else None
        several = rows_of_episode(self.held.recipe)
        groups = rows.group_by("group_id", maintain_order=True).agg(
            pl.col("file", "row").first(),
            size=pl.col("ends").sum(),
            repeated=pl.len() - pl.col("sample_index").n_unique(),
            distinct=(pl.col("sample_index") // several).n_unique(),
            last=pl.col("sample_index").max() // several,
            files=pl.col("file").n_unique(),
            prompts=pl.col("prompt").n_unique(),
        )
        size = pl.lit(wanted) if isinstance(wanted, int) else pl.col("last") + 1
        self.world.ledger.count("schema", "groups", len(groups))
        samples = f"samples 0 to {wanted - 1}" if isinstance(wanted, int) else "samples without a gap"
        rules = {
            "unique": ("each group and sample once", (pl.col("repeated") > 0) | (pl.col("distinct") < pl.col("size"))),
            "group whole": (samples, (pl.col("distinct") != size) | (pl.col("last") + 1 != size)),
            "episode whole": ("one last row of each episode", pl.col("distinct") > pl.col("size")),
            "group in one file": ("a group in one file", pl.col("files") > 1),
            "one prompt": ("one prompt in a group", pl.col("prompts") > 1),
        }
        for check, (expected, broken) in rules.items():
            for bad in groups.filter(broken).iter_rows(named=True):
                found = f"group {bad['group_id']}: {bad['size']} rows, samples up to {bad['last']}, in {bad['files']} files"
                self.spot(bad["file"]).error(
                    "schema", check, expected=expected, found=found, remedy=MAKE_ANEW, row=bad["row"], column="group_id"
                )

    def _check_seeds(self, rows: pl.DataFrame) -> None:
        seeded = rows.drop_nulls("seed")
        twice = seeded.filter(~pl.col("seed").is_first_distinct())
        remedy = "Completions with one seed are copies of each other: generate them anew."
        for file, row, seed, count in twice.group_by("file").agg(pl.col("row", "seed").first(), pl.len()).iter_rows():
            said: dict[str, Any] = {"row": row, "column": "seed", "count": count, "remedy": remedy}
            self.spot(file).error("schema", "seeds", expected="a seed of its own", found=f"{seed}, as an earlier row", **said)
        if self._generated and (self._sampling.get("temperature") or 0) > 0:
            missing = rows.filter(pl.col("seed").is_null())
            for file, row, count in missing.group_by("file").agg(pl.col("row").first(), pl.len()).iter_rows():
                said = {"row": row, "column": "seed", "count": count, "remedy": remedy}
                self.spot(file).error("schema", "seeds", expected="a seed", found="null", **said)

    def _figures(self, rows: pl.DataFrame) -> Iterator[tuple[str, Any]]:
        ends = rows.filter("ends")
        yield "groups", rows["group_id"].n_unique()
        yield "completions", len(ends)
        yield "reward_mean", ends["reward"].mean()
        yield "statuses", dict(ends.group_by("status").len().sort("status").iter_rows())
        yield "policy_version", int(rows["policy_version"][0])
        if rows["whole"].all():
            yield "tokens", int(rows["tokens"].sum())
            yield "prompt_tokens", int(rows["prompt_tokens"].sum())
            yield "without_logprobs", int(rows["without_logprobs"].sum())
        yield "without_reward", rows["reward"].null_count()
        for name in ("without_sampling", "scored"):
            yield name, int(rows[name].sum())

    def _figures_beside(self, table: type[Table], rows: pl.DataFrame) -> Iterator[tuple[str, Any]]:
        """Figures of an import's other tables."""
        if table is Origins:
            yield "retokenized", int((rows["tokens"] == "retokenized").sum())
        if table is SetAside:
            yield "set_aside", len(rows)


def column_of(component: Mapping[str, Any]) -> str:
    """As `pipeline.config.RewardComponent.column`."""
    return f"reward_{component.get('name') or str(component.get('grader')).rpartition(':')[2].rpartition('.')[2]}"


def _scored(name: str, component: Mapping[str, Any]) -> pl.Expr:
    """A component's part of the reward. A function of the user's may say that it does not apply to a row; a built-in cannot."""
    score = pl.col(name)
    return score.fill_null(0.0) if str(component.get("grader")) not in BUILTINS else score


def _leaves(metadata: Any) -> Iterator[tuple[str, Any]]:
    for number in range(metadata.num_columns):
        column = metadata.column(number)
        yield column.path_in_schema, column


def _least_and_greatest(column: Any) -> tuple[float, float]:
    """Of a column's values in a row group, as the file states them; 0 if it does not."""
    statistics = column.statistics if column.is_stats_set else None
    if statistics is None or not statistics.has_min_max:
        return 0.0, 0.0
    try:
        return float(statistics.min), float(statistics.max)
    except (pa.ArrowException, TypeError, ValueError):
        return 0.0, 0.0
