"""Completions in the terminal, token by token. What a model wrote cannot move the cursor, hide or color anything."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from pipeline.common.text import visible
from pipeline.look.pieces import SHADES, load_tokenizer, pieces, shade_of
from pipeline.look.show.completions import Completion, ShownRollouts
from pipeline.look.turns import ShownTurn, label

if TYPE_CHECKING:
    from tokenizers import Tokenizer

By = Literal["logprob", "advantage", "none"]
PROBABILITY = ("", "cyan", "yellow", "dark_orange", "bold red")
"""From likely to hardly likely, by `SHADES`."""
BETTER = ("green4", "green3", "bold green1")
WORSE = ("indian_red", "red1", "bold bright_red")
LEVELS = (0.5, 1.5)
"""Sizes of an advantage at which its color grows stronger."""
GIVEN = "dim italic"
"""Tokens that the policy did not draw."""


def spoken(completion: Completion, by: By) -> list[RenderableType]:
    """A completion; an episode turn by turn, each below a line that says who spoke and further in than it.

    So that nothing in a text can pass for such a line.
    """
    if not completion.turns or completion.row["completion_token_ids"] is None:
        return [Padding(completion_text(completion, by), (0, 0, 0, 2))]
    parts: list[RenderableType] = []
    for turn in completion.turns:
        parts.append(Padding(Text(visible(label(turn)), style="bold"), (0, 0, 0, 2)))
        said = replace(completion, row=_part(completion, turn))
        parts.append(Padding(completion_text(said, by), (0, 0, 0, 4)))
    return parts


def _part(completion: Completion, turn: ShownTurn) -> dict[str, Any]:
    """The row with one turn's tokens alone, and its own advantage where it has one."""
    row, cut = completion.row, slice(turn.start, turn.start + turn.length)
    lists = {name: row[name] and row[name][cut] for name in ("completion_token_ids", "behavior_logprobs", "action_mask")}
    tokenizer = _tokenizer(completion.answers)
    ids = lists["completion_token_ids"]
    text = tokenizer.decode(ids) if tokenizer else f"{len(ids)} tokens"
    advantage = row["advantage"] if turn.advantage is None else turn.advantage
    return {**row, **lists, "completion_text": text, "advantage": advantage}


def completion_text(completion: Completion, by: By) -> Text:
    """A completion with its tokens colored; plain where they or their logprobs are not known."""
    row = completion.row
    tokenizer = _tokenizer(completion.answers)
    style = advantage_style(row["advantage"] or 0.0) if by == "advantage" else ""
    if tokenizer is None or by == "none" or (by == "logprob" and row["behavior_logprobs"] is None):
        return Text(visible(row["completion_text"]), style=style)
    text = Text()
    for piece, start, end in pieces(tokenizer, row["completion_token_ids"]):
        drawn = row["action_mask"] is None or all(row["action_mask"][start:end])
        shade = PROBABILITY[shade_of(min(row["behavior_logprobs"][start:end]))] if by == "logprob" else style
        text.append(visible(piece), style=shade if drawn else GIVEN)
    return text


def advantage_style(advantage: float) -> str:
    """
    >>> advantage_style(0.0), advantage_style(0.3), advantage_style(-2.0)
    ('', 'green4', 'bold bright_red')
    """
    if advantage == 0:
        return ""
    strength = sum(abs(advantage) >= level for level in LEVELS)
    return (BETTER if advantage > 0 else WORSE)[strength]


def legend(by: By) -> Text | None:
    """What the colors mean."""
    if by == "none":
        return None
    if by == "advantage":
        sizes = [0.1, *LEVELS]
        examples = [-size for size in reversed(sizes)] + sizes
        return Text("advantage: ").append(Text("  ").join(Text(f"{a:+g}", style=advantage_style(a)) for a in examples))
    text = Text("probability when drawn: ")
    for least, style in zip(SHADES, PROBABILITY, strict=False):
        text.append(f"≥ {least}", style=style).append("  ")
    return text.append(f"below {SHADES[-1]}", style=PROBABILITY[-1])


def _tokenizer(answers: ShownRollouts) -> Tokenizer | None:
    if answers.policy is None:
        return None
    file = next((file for file in answers.policy.files if file.path == "tokenizer.json"), None)
    return _loaded(answers.policy.place.have(file)) if file else None


@cache
def _loaded(path: Path) -> Tokenizer | None:
    return load_tokenizer(path)[0]
