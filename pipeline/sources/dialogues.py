"""Questions that are dialogues: the user's last turn is the question, and what was said before it stands beside it.

What follows that turn is an answer, and no part of what is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import polars as pl

from pipeline.sources.chats import chat

EARLIER = "earlier_turns"
"""Name in a prompt's metadata: the messages before the question, a system message among them."""
Asked = str | list[dict[str, Any]]
"""What a model is asked: a question, or messages of which the last is the question."""
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


def divided(value: Any, column: str) -> tuple[str, list[dict[str, Any]]]:
    """The question and the messages before it.

    Raises:
        ValueError: no chat messages, or none of them is the user's.

    >>> divided([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}], "messages")
    ('2+2?', [])
    """
    messages = chat(value, column)
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise ValueError(f"column {column}: no message is the user's, so there is no question")
    return messages[last]["content"], messages[:last]


def is_chat(value: Any) -> bool:
    """Whether a value looks like chat messages."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) and "role" in item for item in value)


def read_transcript(text: str, column: str) -> list[dict[str, Any]]:
    """The messages of a text of turns.

    Raises:
        ValueError: it does not begin with one.

    >>> read_transcript("\\n\\nHuman: 2+2?\\n\\nAssistant: 4", "chosen")
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise ValueError(f'column {column}: expected a text of turns such as "\\n\\nHuman: … \\n\\nAssistant: …"')
    return [{"role": _SPEAKERS[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2], strict=True)]


def asked_of(prompts: pl.DataFrame) -> list[Asked]:
    """What each prompt asks, of rows with question and metadata."""
    return [_asked(question, metadata) for question, metadata in prompts.select("question", "metadata").iter_rows()]


def first_dialogue(prompts: pl.DataFrame) -> str | None:
    """Id of the first prompt with something said before its question."""
    found = prompts.filter(earlier_turns().is_not_null())["prompt_id"]
    return None if found.is_empty() else str(found[0])


def earlier_turns() -> pl.Expr:
    """Of rows with metadata: the messages before the question as JSON, null where there are none."""
    return pl.col("metadata").str.json_path_match(f"$.{EARLIER}")


def shared_questions(prompts: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """Prompts that ask what one of the others asks, after the same turns."""
    keys = [pl.col("question"), earlier_turns()]
    return prompts.join(others, left_on=keys, right_on=keys, how="semi", nulls_equal=True)


def size_of(asked: Asked) -> tuple[int, int]:
    """Bytes of what is asked, and how many messages they are."""
    texts: Iterable[str] = [asked] if isinstance(asked, str) else (str(message["content"]) for message in asked)
    sizes = [len(text.encode()) for text in texts]
    return sum(sizes), len(sizes)


def _asked(question: str, metadata: str | None) -> Asked:
    if metadata is None or f'"{EARLIER}"' not in metadata:
        return question
    return one_asked(question, json.loads(metadata).get(EARLIER))


def one_asked(question: str, earlier: list[dict[str, Any]] | None) -> Asked:
    """What a prompt asks.

    Args:
        earlier: messages before the question, if there are any.
    """
    return [*earlier, {"role": "user", "content": question}] if earlier else question
