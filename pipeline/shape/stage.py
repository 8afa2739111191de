"""The shape stage: file by file, since a group never spans two files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.cell import BEHAVIOR
from pipeline.algorithms.cells.density import DENSITY, mean_logprob
from pipeline.algorithms.plugins import unchanged
from pipeline.algorithms.preference import Preference
from pipeline.common.lengths import length
from pipeline.config.shape import ShapeConfig
from pipeline.generate.turns import turns_beside
from pipeline.run.process import Event, Reporter
from pipeline.run.silence import silence
from pipeline.shape.behavior import has_behavior
from pipeline.shape.choices import KEPT, check_weights, finished, shape_rows, shaped_table, with_pairs
from pipeline.shape.classes import ClassRule, Draws, class_rule, draws_of
from pipeline.shape.credit import KEY, credits_of, finished_credits, has_credits, of_rows, with_void
from pipeline.shape.fit import check_limit, max_tokens_of
from pipeline.shape.labels import KEY as LABELLED
from pipeline.shape.labels import GivenPairs, labels_of
from pipeline.shape.rows import ends, spread
from pipeline.shape.settings import check_shape
from pipeline.shape.sums import GRADED, FateSums
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import verified
from pipeline.store.tables import scan_table
from schemas import Credits, Pairs, Rollouts, Shaped

WHOLE = ("sample_index", "finish_reason")
"""Which rows make up one completion."""


def shape(spec: Event, reporter: Reporter) -> Event:
    """Make the shaped artifact of a spec.

    Args:
        spec: store, request, rollouts (path of the artifact), shape (a ShapeConfig), algorithm, algorithm_args; pairs (path of a
            shaped artifact) to take the pairs of that one in place of the file of labels.

    Returns:
        {"artifact": path}.

    Raises:
        UserError: a setting contradicts what the algorithm declares, or the algorithm cannot shape these rollouts.
    """
    request = Request.from_json(spec["request"])
    with Store(spec["store"], reporter.note).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        return {"artifact": str(_Shaping(spec, work).shape(reporter).path)}


class _Shaping:
    def __init__(self, spec: Event, work: Work) -> None:
        self.work = work
        self.rollouts = verified(spec["rollouts"])
        self.choices = ShapeConfig.model_validate(spec["shape"])
        algorithm: Algorithm = resolve(spec["algorithm"], spec["algorithm_args"], spec.get("plugins", ()))
        self.algorithm = unchanged(algorithm, work.request.recipe)
        check_shape(self.choices, self.algorithm)
        check_limit(self.rollouts, self.algorithm, str(self.rollouts.path))
        self.seed = work.request.recipe.get("seed", 0)
        self.oldest_version: int | None = work.request.recipe.get("oldest_version")
        self.moments = 0.0, 1.0, 0.0
        self.given_weight = given_weight(self.rollouts)
        self.given_pairs = _given_pairs(spec, self.choices, self.rollouts)
        scan_table(self.rollouts, Rollouts)
        self.files = self.rollouts.tables("rollouts")
        self.rollouts.tables("turns")  # those are beside them then

    def shape(self, reporter: Reporter) -> Artifact:
        if BEHAVIOR in self.algorithm.shaping_needs:
            kept = ((path, self._unfinished(path).filter(KEPT).select(KEY)) for path in self.files)
            has_behavior(self.rollouts, kept, self.algorithm)
        if self.algorithm.advantage.whole_snapshot:
            self.moments = self._moments()
        rule, sums = self._rule(reporter), FateSums()
        for number, path in enumerate(self.files):
            if self._paired(path) and self.work.has_table(path.name, Shaped):
                graded = ends(pl.read_parquet(path, columns=[*GRADED, *WHOLE], glob=False))
                shaped = pl.read_parquet(self.work.path / path.name, glob=False)
                sums.add(shaped.join(graded.select(KEY), on=KEY, how="semi", maintain_order="left"), graded)
            else:
                self._write(path, rule, sums)
            reporter.progress(number + 1, len(self.files), "files")
        summary = {**sums.fates(), **sums.grades(self.rollouts.summary["groups"], self.algorithm)}
        if why := silence([summary]):
            reporter.note(f"{why}: {self.algorithm.name} learns nothing from these rollouts")
        return self.work.finish(summary)

    def _write(self, path: Path, rule: ClassRule, sums: FateSums) -> None:
        scalars = self._scalars(path)
        rows = self._finished(path, scalars)
        if isinstance(self.algorithm, Preference):
            rows, pairs = with_pairs(rows, self.given_pairs or self.algorithm.pairing)
            self.work.write_table(_pairs_name(path), pairs, Pairs)
        shaped = shaped_table(rows, self.algorithm, rule)
        check_weights(shaped, self.algorithm)
        if has_credits(self.choices):
            kept = shaped.filter("keep").select(KEY)
            credits = self._credits(path, self._shaped(scalars)).join(kept, on=KEY, how="semi", maintain_order="left")
            self.work.write_table(credits_name(path.name), credits, Credits)
        every = pl.read_parquet(path, columns=["group_id", *WHOLE], glob=False)
        self.work.write_table(path.name, spread(shaped, every), Shaped)
        sums.add(shaped, scalars)

    def _paired(self, path: Path) -> bool:
        """Whether a file's pairs and credits are written, if there are to be any."""
        if has_credits(self.choices) and not self.work.has_table(credits_name(path.name), Credits):
            return False
        return not isinstance(self.algorithm, Preference) or self.work.has_table(_pairs_name(path), Pairs)

    def _rows(self, path: Path) -> pl.DataFrame:
        """A file's rows with their fate and their final advantage."""
        return self._finished(path, self._scalars(path))

    def _finished(self, path: Path, scalars: pl.DataFrame) -> pl.DataFrame:
        unfinished = self._shaped(scalars)
        rows = finished(unfinished, self.algorithm, *self.moments)
        return of_rows(rows, self._credits(path, unfinished)) if has_credits(self.choices) else rows

    def _credits(self, path: Path, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of `Credits`, from those of `_unfinished`."""
        return finished_credits(self._unfinished_credits(path, rows), rows, self.algorithm, self.moments)

    def _unfinished_credits(self, path: Path, rows: pl.DataFrame) -> pl.DataFrame:
        return credits_of(rows, turns_beside(path), self.choices, self.algorithm, self.given_weight)

    def _unfinished(self, path: Path) -> pl.DataFrame:
        return self._shaped(self._scalars(path))

    def _shaped(self, scalars: pl.DataFrame) -> pl.DataFrame:
        return shape_rows(scalars, self.choices, self.algorithm, self.seed, self.oldest_version)

    def _scalars(self, path: Path) -> pl.DataFrame:
        tokens = length("completion_token_ids")
        scalars = pl.scan_parquet(path, glob=False).select(
            "group_id",
            "sample_index",
            "status",
            "reward",
            "policy_version",
            tokens=tokens,
            drawn=pl.coalesce(pl.col("action_mask").list.sum(), tokens),
            max_tokens=pl.lit(max_tokens_of(self.rollouts)),
            finish_reason="finish_reason",
            **({DENSITY: mean_logprob()} if BEHAVIOR in self.algorithm.shaping_needs else {}),
        )
        rows = scalars.collect()
        if self.choices.tool_bonus:
            rows = rows.with_columns(calls=calls_of(rows, turns_beside(path)))
        if self.choices.void_turns != "keep":
            rows = with_void(rows, turns_beside(path))
        return ends(rows)

    def _moments(self) -> tuple[float, float, float]:
        """Mean and standard deviation of the advantage over all tokens that are kept and were drawn, and the median of the kept
        groups' mean rewards."""
        count = total = squares = 0.0
        means = [np.empty(0)]
        for path in self.files:
            rows = self._unfinished(path)
            kept = rows.filter(KEPT)
            means.append(kept.group_by("group_id").agg(pl.col("reward").mean())["reward"].to_numpy())
            if has_credits(self.choices):
                turns = self._unfinished_credits(path, rows).join(kept.select(KEY), on=KEY, how="semi").filter("keep")
                kept = turns.rename({"length": "drawn"})
            tokens, advantage = kept["drawn"].cast(pl.Float64), kept["advantage"].cast(pl.Float64)
            count += float(tokens.sum())
            total += float((tokens * advantage).sum())
            squares += float((tokens * advantage**2).sum())
        mean = total / max(count, 1.0)
        rewards = np.concatenate(means)
        median = float(np.median(rewards)) if len(rewards) else 0.0
        return mean, max(squares / max(count, 1.0) - mean**2, 0.0) ** 0.5, median

    def _rule(self, reporter: Reporter) -> ClassRule:
        """What becomes of the two classes, in a pass over the files if their sizes decide it."""
        draws = Draws(np.empty(0, np.uint64), np.empty(0, np.uint64))
        if self.choices.positive_fraction is not None:
            parts = [draws_of(self._rows(path).filter(KEPT)) for path in self.files]
            draws = Draws(*(np.concatenate(part) for part in zip(*((d.positive, d.negative) for d in parts), strict=True)))
            if draws.one_class:
                reporter.note(
                    f"shape.positive_fraction is not reached: {len(draws.positive)} of the kept completions have a positive "
                    f"and {len(draws.negative)} a negative advantage"
                )
        return class_rule(self.choices, draws)


def _given_pairs(spec: Event, choices: ShapeConfig, rollouts: Artifact) -> GivenPairs | None:
    """Preferences that people gave, from their file or, where that may be gone, from what was made of it."""
    if "pairs" in spec:
        made = verified(spec["pairs"]).tables("pairs")
        return GivenPairs(pl.concat([pl.read_parquet(path, glob=False) for path in made]).select(*LABELLED, "preference"))
    return labels_of(Path(choices.labels), rollouts) if choices.labels else None


def given_weight(rollouts: Artifact) -> float:
    """How much what an environment gives counts in the reward."""
    components = rollouts.recipe.get("reward") or ()
    return math.fsum(one.get("weight", 1.0) for one in components if one.get("grader") == "environment")


def calls_of(rows: pl.DataFrame, turns: pl.DataFrame | None) -> pl.Series:
    """How many calls of tools did not fail, of each row; 0 where there are no turns."""
    if turns is None:
        return pl.Series("calls", [0] * len(rows), pl.UInt32)
    answered = turns.filter(pl.col("who") == "tool", pl.col("status") == "ok").group_by(KEY).agg(calls=pl.len())
    return rows.select(KEY).join(answered, on=KEY, how="left", maintain_order="left")["calls"].fill_null(0)


def credits_name(shard: str) -> str:
    """The file of a shard's credits: credits-00000.parquet beside part-00000.parquet."""
    return f"credits-{shard.removeprefix('part-')}"


def _pairs_name(path: Path) -> str:
    return path.name.replace("part-", "pairs-")
