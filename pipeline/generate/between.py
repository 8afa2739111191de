"""The tokens of what an environment says between two turns of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.environments.protocol import Utterance


class Between:
    """Writes messages as tokens: of a plain text as they are.

    What an environment says is text, whatever it spells: a special token's name in it stays a name.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokens(self, messages: Sequence[Utterance], last: int | None) -> list[list[int]]:
        """Tokens of each message, as they follow what there is.

        Args:
            last: the token before them; None if the policy has drawn nothing yet.
        """
        return [plain(self._tokenizer, message.content) for message in messages]


def plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which no special token is meant."""
    found: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found
