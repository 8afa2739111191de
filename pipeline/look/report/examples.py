"""A few best and worst rollouts with their tokens shaded by logprob."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.algorithms.cells.density import mean_logprob
from pipeline.common.lengths import length
from pipeline.common.text import number
from pipeline.look.pieces import load_tokenizer, pieces, shade_of
from pipeline.look.turns import ShownTurn, label, turns_of
from pipeline.run.state import Run
from pipeline.store import Artifact, scan_table
from schemas import Rollouts, Shaped
from schemas.rollouts import ends_episode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EACH = 3
"""Rollouts shown of either end."""
MOST_TOKENS = 600
"""Tokens shown of one completion."""
MOST_CHARACTERS = 4000
"""Characters shown of a prompt, or of a completion without its tokens."""


@dataclass(frozen=True)
class ShownToken:
    """A piece of a completion."""

    text: str
    shade: int | None
    """0 (likely) to len(SHADES) (hardly likely); None if its logprob is not known."""
    hint: str = ""
    """Shown when it is pointed at."""
    speaker: bool = False
    """Whether it is no piece, but says who speaks from here on."""


@dataclass(frozen=True)
class Example:
    """One rollout as it is shown."""

    end: str
    """best or worst."""
    group_id: str
    sample_index: int
    facts: tuple[tuple[str, str], ...]
    prompt: str
    tokens: tuple[ShownToken, ...]
    cut: str | None
    """What was left out."""


@dataclass(frozen=True)
class Examples:
    iteration: int
    shown: tuple[Example, ...]
    note: str | None
    """Why tokens are not shaded."""


def read_examples(run: Run) -> Examples | None:
    """Rollouts with the highest and the lowest reward of the last iteration that has any, one per prompt.

    Among equal rewards the more extreme advantage comes first. Only the shown rows are read with their tokens.
    """
    for step in reversed(run.iterations):
        if step.answers is None or step.answers.rollouts is None:
            continue
        rollouts = step.answers.rollouts
        chosen = _choose(rollouts, step.shaped)
        if chosen.is_empty():
            return None
        tokenizer, note = load_tokenizer(step.policy.file("tokenizer.json"))
        turns = turns_of(rollouts, chosen, step.shaped)
        found = (
            _example(row, tokenizer, turns.get((row["group_id"], row["sample_index"]), [])) for row in _read(rollouts, chosen)
        )
        return Examples(step.iteration, tuple(found), note)
    return None


def _choose(rollouts: Artifact, shaped: Artifact | None) -> pl.DataFrame:
    """group_id, sample_index, reward, advantage and end of the rows to show, best first, then worst first."""
    whole = scan_table(rollouts, Rollouts).filter(ends_episode(), pl.col("reward").is_not_null())
    rows = whole.select("group_id", "sample_index", "reward")
    if shaped is not None:
        keys = ("group_id", "sample_index")
        rows = rows.join(scan_table(shaped, Shaped).select(*keys, "advantage"), on=keys, how="left", maintain_order="left")
    else:
        rows = rows.with_columns(advantage=pl.lit(None, dtype=pl.Float32))
    frame = rows.collect(engine="streaming")
    by = ("reward", "advantage", "group_id", "sample_index")
    best = _ends(frame.sort(by, descending=[True, True, False, False], nulls_last=True), "best")
    rest = frame.join(best, on="group_id", how="anti")
    worst = _ends(rest.sort(by, descending=False, nulls_last=True), "worst")
    return pl.concat([best, worst])


def _ends(frame: pl.DataFrame, end: str) -> pl.DataFrame:
    first = frame.unique("group_id", keep="first", maintain_order=True).head(EACH)
    return first.with_columns(end=pl.lit(end))


def _read(rollouts: Artifact, chosen: pl.DataFrame) -> list[dict[str, Any]]:
    """The chosen rows with texts and the first tokens, in the chosen order."""
    rows = scan_table(rollouts, Rollouts)
    rewards = [name for name in rows.collect_schema().names() if name.startswith("reward_")]
    same = reduce(
        or_,
        [
            (pl.col("group_id") == group) & (pl.col("sample_index") == sample)
            for group, sample in chosen.select("group_id", "sample_index").iter_rows()
        ],
    )
    lists = ("completion_token_ids", "behavior_logprobs", "action_mask")
    texts = ("group_id", "sample_index", "prompt_id", "prompt_text", "completion_text", "answer", "status", "finish_reason")
    selected = rows.filter(same).select(
        *texts,
        *rewards,
        *(pl.col(name).list.head(MOST_TOKENS) for name in lists),
        tokens=length(lists[0]),
        logprob_mean=mean_logprob(),
    )
    found = selected.collect(engine="streaming")
    return chosen.join(found, on=("group_id", "sample_index"), how="left", maintain_order="left").to_dicts()


def _example(row: dict[str, Any], tokenizer: Tokenizer | None, turns: Sequence[ShownTurn]) -> Example:
    text, logprobs = row["completion_text"], row["behavior_logprobs"]
    if tokenizer is not None and logprobs is not None:
        tokens = _spoken(tokenizer, row["completion_token_ids"], logprobs, row["action_mask"], turns)
        cut = f"The first {MOST_TOKENS} of {row['tokens']:,} tokens." if row["tokens"] > MOST_TOKENS else None
    else:
        tokens = [ShownToken(text[:MOST_CHARACTERS], None)] if text else []
        cut = f"The first {MOST_CHARACTERS:,} of {len(text):,} characters." if len(text) > MOST_CHARACTERS else None
    facts = [
        ("reward", number(row["reward"])),
        *((name.removeprefix("reward_"), number(value)) for name, value in row.items() if name.startswith("reward_")),
        ("advantage", number(row["advantage"])),
        ("status", row["status"]),
        ("ended by", row["finish_reason"] or "unknown"),
        ("tokens", f"{row['tokens']:,}"),
        ("mean logprob", number(row["logprob_mean"])),
        ("reference answer", _cut(row["answer"], 200) if row["answer"] is not None else "none"),
    ]
    prompt = _cut(row["prompt_text"], MOST_CHARACTERS)
    return Example(row["end"], row["group_id"], row["sample_index"], tuple(facts), prompt, tuple(tokens), cut)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def _spoken(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    logprobs: Sequence[float],
    mask: Sequence[bool] | None,
    turns: Sequence[ShownTurn],
) -> list[ShownToken]:
    """The pieces of a completion; of an episode, before each turn who speaks."""
    if not turns:
        return _shaded(tokenizer, ids, logprobs, mask)
    tokens = []
    for turn in turns:
        cut = slice(turn.start, turn.start + turn.length)
        if turn.start < len(ids):
            tokens.append(ShownToken(label(turn), None, speaker=True))
            tokens += _shaded(tokenizer, ids[cut], logprobs[cut], None if mask is None else mask[cut])
    return tokens


def _shaded(tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[float], mask: Sequence[bool] | None) -> list[ShownToken]:
    tokens = []
    for text, start, end in pieces(tokenizer, ids):
        drawn = mask is None or all(mask[start:end])
        least = min(logprobs[start:end])
        shade = shade_of(least) if drawn else None
        hint = f"logprob {least:.2f}, probability {math.exp(least):.2g}" if drawn else "not drawn by the policy"
        tokens.append(ShownToken(text, shade, hint))
    return tokens
