"""A completion as pieces of text, each with the shade of its logprob, its advantage or its ratio, and with these figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.text import number
from pipeline.look.pieces import SHADES, load_tokenizer, pieces, shade_of
from pipeline.look.turns import ShownTurn, label
from pipeline.look.view.parts import ViewPart

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_TOKENS = 1500
"""Tokens shown of one completion, unless all are asked for."""
MOST_CHARACTERS = 20_000
"""Characters shown of a text without its tokens."""
DRIFTS = (0.05, 0.2, 0.5)
"""Sizes of a log ratio at which its shade begins, and grows deeper."""
ADVANTAGES = (0.0, 0.5, 1.5)
"""Sizes of an advantage at which its shade begins, and grows deeper."""
PLAIN = ("logprob", "advantage", "none")
"""What tokens can be shaded by, beside the ratio to a checkpoint that scored them."""
RATIO = "ratio "
"""Before the name of scores, in what tokens are shaded by."""


@dataclass(frozen=True)
class ShadedPiece:
    """Some characters of a completion."""

    text: str
    look: str = ""
    """Class of the page's style: p0 to p4, up1 to up3, down1 to down3, given, or none."""
    hint: str = ""
    """Shown when it is pointed at."""


@dataclass(frozen=True)
class ShadedTurn:
    """What one speaker said without a break; all of a completion that is no episode."""

    pieces: tuple[ShadedPiece, ...]
    label: str | None = None
    """Who spoke and what came of it, in an episode. The name of a tool in it is what somebody else wrote."""
    who: str | None = None
    """policy, environment or tool."""


@dataclass(frozen=True)
class ShadedText:
    """A whole completion."""

    turns: tuple[ShadedTurn, ...]
    note: str | None = None
    """What is not shown, and why."""
    is_cut: bool = False


def choices(part: ViewPart) -> list[str]:
    """What the tokens of an artifact can be shaded by."""
    return ["logprob", *(["advantage"] if part.shaped else []), *(f"{RATIO}{role}" for role in part.scores), "none"]


def shaded(row: dict[str, Any], part: ViewPart, by: str, *, whole: bool = False) -> ShadedText:
    """Shade a row's completion.

    Args:
        row: with its tokens, logprobs, mask, advantage, turns, and scores under `scores <role>`.
        by: one of `choices`.
        whole: show it to its end, however long it is.
    """
    tokenizer, why = _tokenizer(part)
    ids: list[int] = row["completion_token_ids"] or []
    if tokenizer is None:
        return _without_tokens(row, by, why, whole)
    cut = not whole and len(ids) > MOST_TOKENS
    shown = MOST_TOKENS if cut else len(ids)
    note = f"the first {MOST_TOKENS:,} of {len(ids):,} tokens" if cut else None
    if not row["turns"]:
        return ShadedText((ShadedTurn(_pieces(tokenizer, ids, 0, shown, row, by)),), note, cut)
    turns = [turn for turn in row["turns"] if turn.start < shown or turn.length == 0]
    spoken = [_pieces(tokenizer, ids, turn.start, min(turn.start + turn.length, shown), _earned(row, turn), by) for turn in turns]
    said = tuple(ShadedTurn(here, label(turn), turn.who) for turn, here in zip(turns, spoken, strict=True))
    left = len(row["turns"]) - len(turns)
    return ShadedText(said, f"{note}; {left} more turn{'s' if left > 1 else ''}" if left else note, cut)


def _earned(row: dict[str, Any], turn: ShownTurn) -> dict[str, Any]:
    """The row, with the turn's own advantage where it has one."""
    return row if turn.advantage is None else {**row, "advantage": turn.advantage}


def _without_tokens(row: dict[str, Any], by: str, why: str | None, whole: bool) -> ShadedText:
    """The text alone; of an episode, whose text it is can only be said in a line below it."""
    text = row["completion_text"] or ""
    cut = not whole and len(text) > MOST_CHARACTERS
    look = _advantage(row["advantage"]) if by == "advantage" else ""
    spoke = f"; spoke turn by turn: {'; '.join(label(turn) for turn in row['turns'])}" if row["turns"] else ""
    return ShadedText((ShadedTurn((ShadedPiece(text[:MOST_CHARACTERS] if cut else text, look),)),), f"{why}{spoke}", cut)


def _pieces(
    tokenizer: Tokenizer, ids: Sequence[int], start: int, end: int, row: dict[str, Any], by: str
) -> tuple[ShadedPiece, ...]:
    """The tokens from `start` to `end`, as texts that belong to nobody else's."""
    spelled = pieces(tokenizer, ids[start:end])
    return tuple(_piece(text, start + first, start + last, row, by) for text, first, last in spelled)


def _piece(text: str, start: int, end: int, row: dict[str, Any], by: str) -> ShadedPiece:
    mask, logprobs = row["action_mask"], row["behavior_logprobs"]
    if mask is not None and not all(mask[start:end]):
        return ShadedPiece(text, "given", "not drawn by the policy")
    known = _sum(logprobs, start, end)
    hint = f"logprob {number(known)}, probability {number(math.exp(known))}" if known is not None else ""
    if by == "logprob" and known is not None:
        return ShadedPiece(text, f"p{shade_of(min(logprobs[start:end]))}", hint)
    if by == "advantage":
        return ShadedPiece(text, _advantage(row["advantage"]), f"advantage {number(row['advantage'])}; {hint}")
    if by.startswith(RATIO):
        scored = _sum(row.get(f"scores {by.removeprefix(RATIO)}"), start, end)
        if scored is not None and known is not None:
            ratio = math.exp(min(scored - known, 50.0))
            return ShadedPiece(
                text, _deep(scored - known, DRIFTS), f"ratio {number(ratio)}: logprob {number(known)} → {number(scored)}"
            )
    return ShadedPiece(text, "", hint)


def _sum(values: Sequence[float | None] | None, start: int, end: int) -> float | None:
    """Logprob of the tokens of a piece; None where one is not known or not finite."""
    here = values[start:end] if values is not None else []
    known = [value for value in here if value is not None and math.isfinite(value)]
    return sum(known) if known and len(known) == end - start else None


def _advantage(advantage: float | None) -> str:
    return _deep(advantage, ADVANTAGES) if advantage is not None and math.isfinite(advantage) else ""


def _deep(value: float, levels: Sequence[float]) -> str:
    """
    >>> _deep(0.3, DRIFTS), _deep(-0.6, DRIFTS), _deep(0.01, DRIFTS), _deep(0.0, ADVANTAGES), _deep(0.2, ADVANTAGES)
    ('up2', 'down3', '', '', 'up1')
    """
    depth = sum(abs(value) > level for level in levels)
    return f"{'up' if value > 0 else 'down'}{depth}" if depth else ""


def legend(by: str) -> list[ShadedPiece]:
    """What the shades mean."""
    if by == "none":
        return []
    if by == "logprob":
        likely = [ShadedPiece(f"≥ {least:g}", f"p{shade}") for shade, least in enumerate(SHADES)]
        return [*likely, ShadedPiece(f"below {SHADES[-1]:g}", f"p{len(SHADES)}")]
    by_advantage = by == "advantage"
    levels = ADVANTAGES if by_advantage else DRIFTS
    low, high = ([0.0 - level for level in levels], levels) if by_advantage else _ratios(levels)
    down = [ShadedPiece(f"below {level:.3g}", f"down{depth}") for depth, level in enumerate(low, start=1)]
    return [*reversed(down), *(ShadedPiece(f"above {level:.3g}", f"up{depth}") for depth, level in enumerate(high, start=1))]


def _ratios(levels: Sequence[float]) -> tuple[list[float], list[float]]:
    """Ratios whose logs are minus and plus some levels."""
    return [math.exp(-level) for level in levels], [math.exp(level) for level in levels]


def _tokenizer(part: ViewPart) -> tuple[Tokenizer | None, str | None]:
    if part.policy is None:
        return None, "the model that answered is not in the store, so its tokens are not known"
    file = next((file for file in part.policy.files if file.path == "tokenizer.json"), None)
    if file is None:
        return None, "the model that answered has no tokenizer.json, so its tokens are not known"
    return _loaded(part.policy.place.have(file))


@lru_cache(maxsize=8)
def _loaded(path: Path) -> tuple[Tokenizer | None, str | None]:
    return load_tokenizer(path)
