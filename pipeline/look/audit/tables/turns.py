"""Turns: they cover their episode without a gap, and what the policy drew is what its mask says."""

from __future__ import annotations

import polars as pl

from pipeline.common.lengths import length
from pipeline.generate.turns import FIGURED, figures_of
from pipeline.look.audit.rows import MAKE_ANEW, Rule
from pipeline.look.audit.tables.checks import Checks
from schemas import Rollouts, Turns

KEY = ["group_id", "sample_index"]
TURN_FACTS = {
    "key": pl.struct(Turns.primary_key()).hash(),
    **{name: pl.col(name) for name in (*KEY, "turn", "start", *FIGURED)},
    "drawn": pl.col("who") == "policy",
}


def under_mask() -> Rule:
    """The logprob of a token that nobody drew is 0."""
    logprobs, mask = pl.col("behavior_logprobs"), pl.col("action_mask")
    drawn = mask.list.eval(pl.element().not_().arg_true())
    others = pl.when(mask.is_null() | logprobs.is_null()).then(None).otherwise(logprobs.list.gather(drawn, null_on_oob=True))
    largest = others.list.eval(pl.element().abs()).list.max()
    return Rule(
        check="logprobs under the mask",
        broken=(largest != 0).fill_null(False),
        expected="logprob 0 of a token that nobody drew",
        found=largest,
        column="behavior_logprobs",
    )


def check_turns(checks: Checks, turns: pl.DataFrame) -> None:
    """Report episodes whose turns are not those of their row.

    Args:
        turns: `TURN_FACTS` of all files, with file and row.
    """
    masks = {
        "tokens": length("completion_token_ids"),
        "mask": pl.col("action_mask").hash(),
        "whole": pl.col("action_mask").is_null(),
    }
    rows = checks.world.columns(checks.held, Rollouts, {**{name: pl.col(name) for name in KEY}, **masks})
    if rows is None or turns.is_empty():
        return
    checks.check_summary({"episodes": figures_of(turns)})
    turns = turns.sort(*KEY, "turn", maintain_order=True)
    drawn = pl.col("drawn").repeat_by("length").explode()
    episodes = turns.group_by(KEY, maintain_order=True).agg(
        pl.col("file", "row").first(),
        numbered=(pl.col("turn") == pl.int_range(pl.len())).all(),
        joined=(pl.col("start") == pl.col("length").cum_sum() - pl.col("length")).all(),
        covered=pl.col("length").sum(),
        drawn=drawn.filter(drawn.is_not_null()),
    )
    both = rows.select(*KEY, *masks).join(episodes, on=KEY, how="left", maintain_order="left")
    both = both.with_columns(drawn_hash=pl.col("drawn").hash(), all_drawn=pl.col("drawn").list.all())
    masked = pl.when("whole").then(pl.col("all_drawn")).otherwise(pl.col("drawn_hash") == pl.col("mask"))
    broken = {
        "the turns of every completion": pl.col("covered").is_null() & (pl.col("tokens") > 0),
        "turns numbered from 0, without a gap": ~pl.col("numbered"),
        "turns that follow one another": ~pl.col("joined"),
        "turns that cover the completion": pl.col("covered") != pl.col("tokens"),
        "turns of the policy where action_mask is true": ~masked,
    }
    for expected, condition in broken.items():
        bad = both.filter(condition.fill_null(False))
        if len(bad):
            first = bad.row(0, named=True)
            found = f"otherwise in group {first['group_id']}, sample {first['sample_index']}"
            said = {"row": first["row"], "count": len(bad)} if first["row"] is not None else {"count": len(bad)}
            checks.spot(first["file"]).error("schema", "turns", expected=expected, found=found, remedy=MAKE_ANEW, **said)
