"""Advantages and masks of turns: what each turn of the policy in an episode earns.

    G_k = r_k + discount * G_(k+1),   A_k = advantage(G_k) among the k-th turns of the policy in its group

r_k is what the environment gave for the policy's k-th turn, times the weight of the grader `environment` in the reward. What of
an episode's reward no turn was given is its last turn's, so that with a discount of 1 the first return is the episode's reward.
"""

from __future__ import annotations

import itertools

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.advantages import GROUP
from pipeline.config.shape import ShapeConfig
from schemas.turns import VOID

KEY = [GROUP, "sample_index"]
ORDER = "k"
"""Number of a turn among those of the policy in its episode."""
_PLACED = ["turn", "start", "length"]


def has_credits(choices: ShapeConfig) -> bool:
    """Whether a shaped table has credits beside it."""
    return choices.credit == "turn" or choices.void_turns == "mask"


def policy_turns(rows: pl.DataFrame, turns: pl.DataFrame | None) -> pl.DataFrame:
    """The turns of the policy in each row, with `k` and `void`. A row without turns has one, which is all of it.

    Args:
        rows: group_id, sample_index and tokens.
    """
    types = pl.Schema(
        {
            "turn": pl.Int32(),
            "start": pl.Int32(),
            "length": pl.Int32(),
            "given": pl.Float64(),
            "void": pl.Boolean(),
        }
    )
    found = pl.DataFrame(schema={GROUP: pl.String(), "sample_index": pl.Int32(), **types})
    if turns is not None:
        spoken = turns.filter(pl.col("who") == "policy").sort(*KEY, "turn")
        found = spoken.select(*KEY, *_PLACED, given=pl.col("reward").fill_null(0.0), void=pl.col("status") == VOID)
    known = pl.concat([found.select(KEY), turns.select(KEY)]).unique() if turns is not None else found.select(KEY)
    whole = rows.join(known, on=KEY, how="anti", maintain_order="left").select(
        *KEY, turn=pl.lit(0), start=pl.lit(0), length="tokens", given=pl.lit(0.0), void=pl.lit(False)
    )
    both = pl.concat([found.join(rows.select(KEY), on=KEY, how="semi"), whole.cast(types)])
    return both.sort(*KEY, "turn").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over(KEY).alias(ORDER))


def with_void(rows: pl.DataFrame, turns: pl.DataFrame | None) -> pl.DataFrame:
    """The rows with `voids`: how many turns of each are void, and `sound`: tokens of the turns that are not."""
    counts = (
        policy_turns(rows, turns)
        .group_by(KEY)
        .agg(voids=pl.col("void").sum(), sound=pl.col("length").filter(~pl.col("void")).sum())
    )
    return rows.join(counts, on=KEY, how="left", maintain_order="left").with_columns(pl.col("voids", "sound").fill_null(0))


def credits_of(
    rows: pl.DataFrame, turns: pl.DataFrame | None, choices: ShapeConfig, algorithm: Algorithm, given_weight: float
) -> pl.DataFrame:
    """The turns of the policy with their advantage before `Advantage.finish`, and `keep`.

    Args:
        rows: of `shape_rows`: those that count in their group's statistics have an advantage.
        given_weight: weight of the environment's rewards in the reward.
    """
    counted = rows.filter(pl.col("advantage").is_not_null())
    found = policy_turns(counted, turns).join(
        counted.select(*KEY, "reward", "zeroed", whole="advantage"), on=KEY, how="left", maintain_order="left"
    )
    keep = ~pl.col("void") if choices.void_turns == "mask" else pl.lit(True)
    if choices.credit == "turn":
        given = pl.when("zeroed").then(0.0).otherwise(pl.col("given") * given_weight)
        rest = pl.col("reward") - pl.col("given").sum().over(KEY)
        is_last = pl.col(ORDER) == pl.col(ORDER).max().over(KEY)
        found = found.with_columns(given=given).with_columns(given=pl.col("given") + pl.when(is_last).then(rest).otherwise(0.0))
        found = found.with_columns(pl.Series("reward", discounted(found, choices.discount), pl.Float64))
        peers = (pl.col(GROUP) + "\0" + pl.col(ORDER).cast(pl.String)).alias(GROUP)
        earned = found.with_columns(peers).select(advantage=algorithm.advantage.expression(pl.col("reward")))
        found = found.with_columns(earned["advantage"])
    else:
        found = found.with_columns(advantage="whole")
    return found.select(*KEY, *_PLACED, "reward", "advantage", keep=keep)


def discounted(turns: pl.DataFrame, discount: float) -> list[float]:
    """The return of each turn: what it and the later ones of its episode were given, discounted.

    Args:
        turns: sorted; group_id, sample_index and given.
    """
    names = zip(turns[GROUP], turns["sample_index"], strict=True)
    found: list[float] = []
    for _, episode in itertools.groupby(zip(names, turns["given"], strict=True), key=lambda one: one[0]):
        total, returns = 0.0, []
        for _, given in reversed(list(episode)):
            total = given + discount * total
            returns.append(total)
        found += reversed(returns)
    return found


def finished_credits(
    found: pl.DataFrame, rows: pl.DataFrame, algorithm: Algorithm, moments: tuple[float, float, float]
) -> pl.DataFrame:
    """Rows of `Credits`, of kept completions.

    Args:
        found: of `credits_of`.
        rows: of `shape_rows`, with `drop_reason`.
    """
    kept = rows.filter(pl.col("drop_reason").is_null()).select(KEY)
    found = found.join(kept, on=KEY, how="semi", maintain_order="left")
    advantage = algorithm.advantage.finish(pl.col("advantage"), *moments)
    return found.select(
        *KEY,
        *_PLACED,
        advantage=pl.when("keep").then(advantage).otherwise(0.0).cast(pl.Float32),
        keep="keep",
    )


def of_rows(rows: pl.DataFrame, turns: pl.DataFrame) -> pl.DataFrame:
    """The rows with the advantages of their turns: the mean over the tokens of those that are kept.

    Args:
        turns: rows of `Credits`.
    """
    weighed = pl.col("advantage").cast(pl.Float64) * pl.col("length")
    means = turns.filter("keep").group_by(KEY).agg(mean=weighed.sum() / pl.col("length").sum().clip(lower_bound=1))
    joined = rows.join(means, on=KEY, how="left", maintain_order="left")
    return joined.with_columns(advantage=pl.coalesce("mean", "advantage")).drop("mean")
