"""What becomes of each completion before training: a named choice for every case, and the reason on every dropped row."""

from __future__ import annotations

import hashlib

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.advantages import GROUP
from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.algorithms.cells.shaping import ExponentialAdvantage
from pipeline.common.errors import UserError
from pipeline.config.shape import ShapeConfig
from pipeline.shape.classes import ClassRule
from pipeline.shape.labels import GivenPairs
from pipeline.shape.settings import draws, filters_on_grades, filters_on_rewards
from schemas.rollouts import ENVIRONMENT_ERROR

REASON = "drop_reason"
KEPT = pl.col(REASON).is_null()


def shape_rows(
    rows: pl.DataFrame, choices: ShapeConfig, algorithm: Algorithm, seed: int, oldest_version: int | None = None
) -> pl.DataFrame:
    """Advantage and fate of each completion, before anything that needs the whole snapshot.

    Args:
        rows: group_id, sample_index, status, reward, tokens (completion length), drawn (how many of them the policy drew),
            max_tokens and, with `oldest_version`, policy_version, with a bonus for calls of tools `calls`, with `truncated_by`
            finish_reason, with `void_turns` voids and sound; whole groups, any order.
        seed: of random draws, which are keyed by group and sample and so do not depend on the order of rows.
        oldest_version: completions by older policies are left out.

    Returns:
        The rows with `advantage` (null where dropped) and `drop_reason`, in the order of `rows`. Completions without a
        usable reward, and filtered ones, are left out of their group's statistics; truncated ones that are dropped are not
        (their reward is known).
    """
    rows = _graded(rows, choices)
    if draws(choices, algorithm):
        rows = rows.with_columns(_draws(rows, seed))
    status = pl.col("status")
    unusable = {
        "engine_error": status == "engine_error",
        ENVIRONMENT_ERROR: status == ENVIRONMENT_ERROR,
        "reward_error": (status == "reward_error") & (choices.reward_error == "drop"),
        "empty": pl.col("tokens") == 0,
        "masked": pl.col("drawn") == 0,
    }
    if oldest_version is not None:
        unusable["age"] = pl.col("policy_version") < oldest_version
    # Of a row alone: the first that holds, in one pass.
    reasons = [pl.when(condition).then(pl.lit(reason)) for reason, condition in unusable.items()]
    rows = _on_kept(rows, **{REASON: pl.coalesce(reasons)})
    if choices.min_group > 1:
        rows = _dropping(rows, "small_group", pl.len().over(GROUP) < choices.min_group)
    for cell in filters_on_grades(choices):
        rows = _dropping(rows, cell.reason, cell.drops())
    earned = pl.col("reward") + tool_bonus(choices) if choices.tool_bonus else pl.col("reward")
    rows = rows.with_columns(grade=pl.col("reward"), reward=algorithm.reward.shaped(earned))
    for cell in filters_on_rewards(choices, algorithm):
        rows = _dropping(rows, cell.reason, cell.drops())
    rows = _on_kept(rows, advantage=algorithm.advantage.expression(pl.col("reward")))
    if choices.truncated == "drop":
        rows = _dropping(rows, "truncated", _is_cut(choices))
    if choices.void_turns == "drop":
        rows = _dropping(rows, "void_turn", pl.col("voids") > 0)
    if choices.void_turns == "mask":
        rows = _dropping(rows, "void_turn", (pl.col("voids") > 0) & (pl.col("sound") == 0))
    return rows


def tool_bonus(choices: ShapeConfig) -> pl.Expr:
    """b min(calls, most): SPEAR's tool-call bonus, arXiv:2509.22601, of which b moves by a schedule."""
    return choices.tool_bonus * pl.col("calls").clip(upper_bound=choices.tool_bonus_calls)


def with_pairs(rows: pl.DataFrame, pairing: RewardPairs | GivenPairs) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pair the kept rows. Returns the rows, those in no pair dropped as unpaired, and the rows of a `Pairs` table."""
    pairs = pairing.pairs(rows.filter(KEPT))
    ends = [pairs.select(GROUP, sample_index=name) for name in ("chosen_index", "rejected_index")]
    paired = pl.concat(ends).unique().with_columns(paired=pl.lit(True))
    rows = rows.join(paired, on=[GROUP, "sample_index"], how="left", maintain_order="left")
    return _dropping(rows, "unpaired", pl.col("paired").is_null()).drop("paired"), pairs


def finished(rows: pl.DataFrame, algorithm: Algorithm, mean: float = 0.0, std: float = 1.0, median: float = 0.0) -> pl.DataFrame:
    """The rows of `shape_rows` with their final advantage; 0 where dropped.

    Args:
        mean, std, median: numbers of the whole snapshot (see `Advantage.finish`), for algorithms that need them.
    """
    advantage = algorithm.advantage.finish(pl.col("advantage"), mean, std, median)
    return rows.with_columns(advantage=pl.when(KEPT).then(advantage).otherwise(0.0))


def shaped_table(rows: pl.DataFrame, algorithm: Algorithm, rule: ClassRule = ClassRule()) -> pl.DataFrame:  # noqa: B008
    """The rows of a `Shaped` table from those of `finished`."""
    if rule.surplus is not None:
        rows = _dropping(rows, rule.surplus.reason, rule.surplus.drops())
    weight = (rule.weights or algorithm.weighting).weight(pl.col("advantage"))
    return rows.select(
        "group_id",
        "sample_index",
        advantage=pl.when(KEPT).then(pl.col("advantage")).otherwise(0.0).cast(pl.Float32),
        weight=pl.when(KEPT).then(weight).otherwise(0.0).cast(pl.Float32),
        keep=KEPT,
        drop_reason=REASON,
    )


def check_weights(shaped: pl.DataFrame, algorithm: Algorithm) -> None:
    """Refuse weights that overflow.

    Raises:
        UserError: names a completion, and the setting that keeps its weight finite.
    """
    if not isinstance(algorithm.weighting, ExponentialAdvantage):
        return
    overflowing = shaped.filter(~pl.col("weight").is_finite())
    if len(overflowing):
        row = overflowing.row(0, named=True)
        raise UserError(
            f"{algorithm.name}: group {row['group_id']}, sample {row['sample_index']}: exp(A / temperature) is no finite number "
            f"with A = {row['advantage']:g} and temperature = {algorithm.weighting.temperature:g}. Raise weighting.temperature "
            "in train.algorithm_args, to about the spread of the rewards"
        )


def _graded(rows: pl.DataFrame, choices: ShapeConfig) -> pl.DataFrame:
    """The rows with the rewards that the settings make of failed and truncated completions; none is dropped yet."""
    reward = pl.col("reward")
    if choices.reward_error == "zero_reward":
        reward = pl.when(pl.col("status") == "reward_error").then(0.0).otherwise(reward)
    zeroed = pl.lit(False)
    if choices.truncated == "zero_reward":
        zeroed = _is_cut(choices)
        reward = pl.when(zeroed).then(0.0).otherwise(reward)
    return rows.with_columns(pl.lit(None, pl.String).alias(REASON), reward=reward, zeroed=zeroed)


def _is_cut(choices: ShapeConfig) -> pl.Expr:
    """Whether a completion is one that `truncated` is about."""
    cut = pl.col("status") == "truncated"
    if choices.truncated_by is None:
        return cut
    return cut & pl.col("finish_reason").is_in(choices.truncated_by).fill_null(False)


def _dropping(rows: pl.DataFrame, reason: str, condition: pl.Expr) -> pl.DataFrame:
    """Mark rows that are still kept and meet a condition; the condition sees only rows that are still kept."""
    return _on_kept(rows, **{REASON: pl.when(condition).then(pl.lit(reason))})


def _on_kept(rows: pl.DataFrame, **columns: pl.Expr) -> pl.DataFrame:
    """Compute columns over the kept rows alone; the others keep what they have."""
    if rows[REASON].null_count() == len(rows):
        return rows.with_columns(**columns)
    numbered = rows.with_row_index("row")
    parts = [numbered.filter(KEPT).with_columns(**columns), numbered.filter(~KEPT)]
    return pl.concat(parts, how="diagonal_relaxed").sort("row").drop("row")


def _draws(rows: pl.DataFrame, seed: int) -> pl.Series:
    """A number per row, from a hash of seed, group and sample."""
    names = zip(rows["group_id"], rows["sample_index"], strict=True)
    hashes = [hashlib.blake2b(f"{seed}\0{group}\0{sample}".encode(), digest_size=8) for group, sample in names]
    return pl.Series("draw", [int.from_bytes(hashed.digest(), "big") for hashed in hashes], pl.UInt64)
