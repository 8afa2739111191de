"""Chat messages as a chat template writes them, turn by turn: what the model was given, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.exchange.imports.known import Messages
from pipeline.sources.chats import REASONING, reasoning_of

Write = Callable[[Messages, bool], str]
"""Messages as text; true: with the assistant's turn opened."""


class Turn(NamedTuple):
    """A piece of a completion."""

    text: str
    drawn: bool
    """The model wrote it."""


def written_turns(write: Write, prompt: Messages, turns: Messages, end: str | None, *, ended: bool) -> list[Turn]:
    """What the template writes after a prompt for the turns that follow, in pieces.

    Args:
        end: text of the token that ends a turn. What the template writes behind it was not drawn.
        ended: the model ended its last turn itself.

    Raises:
        ValueError: the template changes earlier turns once later ones follow, or leaves the reasoning out.
    """
    chat, text = list(prompt), write(prompt, turns[0]["role"] == "assistant")
    found: list[Turn] = []
    for place, turn in enumerate(turns):
        own = turn["role"] == "assistant"
        following = turns[place + 1]["role"] if place + 1 < len(turns) else None
        piece, chat = _piece(write, chat, text, turn, opened=not own and following == "assistant")
        text += piece
        if not own:
            found.append(Turn(piece, drawn=False))
            continue
        said, mark, behind = piece.rpartition(end) if end else ("", "", "")
        if not mark:
            said, behind = piece, ""
        last = following is None
        found.append(Turn(said + (mark if ended or not last else ""), drawn=True))
        if not last:
            opening = _opening(write, chat, text) if following == "assistant" else ""
            text += opening
            found.append(Turn(behind + opening, drawn=False))
    while found and not found[-1].drawn:
        found.pop()  # what follows the model's last word was never answered
    return [turn for turn in found if turn.text]


def _piece(write: Write, chat: Messages, before: str, turn: dict[str, Any], *, opened: bool) -> tuple[str, Messages]:
    """What one more turn adds to the text before it, and the messages with it."""
    reasoning = reasoning_of(turn) if turn["role"] == "assistant" else None
    for one in _spellings(turn, reasoning):
        whole = write([*chat, one], opened)
        if not whole.startswith(before):
            continue
        if reasoning is None or reasoning.strip() in whole[len(before) :]:
            return whole[len(before) :], [*chat, one]
    if reasoning is not None:
        raise ValueError("the chat template of --model does not write the answer's reasoning, which was drawn before it")
    raise ValueError("the chat template of --model writes earlier turns anew once later ones follow, so no text is of them all")


def _spellings(turn: dict[str, Any], reasoning: str | None) -> Sequence[dict[str, Any]]:
    """A turn with its reasoning under the names that templates know."""
    if reasoning is None:
        return [turn]
    bare = {name: value for name, value in turn.items() if name not in REASONING}
    return [turn, *({**bare, name: reasoning} for name in REASONING)]


def _opening(write: Write, chat: Messages, before: str) -> str:
    whole = write(chat, True)
    return whole[len(before) :] if whole.startswith(before) else ""
