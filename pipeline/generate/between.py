"""The tokens of what an environment says between two turns of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2

from pipeline.common.errors import UserError
from pipeline.environments.protocol import Utterance
from pipeline.sources.rendering import DAY

MARK = "\u2063{}\u2063"
"""What stands for a text while a chat template is written around it: nothing that a template has or takes away."""


class Between(Protocol):
    """Writes messages as tokens. What an environment says is text, whatever it spells: a special token's name stays a name."""

    def tokens(self, messages: Sequence[Utterance], last: int | None) -> list[list[int]]:
        """Tokens of each message, as they follow what there is.

        Args:
            last: the token before them; None if the policy has drawn nothing yet.
        """

    def notes(self, *, anew: bool = False) -> list[str]:
        """What the user should know of it before episodes begin.

        Args:
            anew: whether the whole chat is rendered for each turn.
        """


def between(tokenizer: Any, prompts: Mapping[str, Any]) -> Between:
    """What writes messages after prompts.

    Args:
        prompts: recipe of their artifact.
    """
    if not prompts["chat"]:
        return PlainBetween(tokenizer)
    return ChatBetween(tokenizer, {**prompts.get("chat_template_kwargs", {}), **tools_told(prompts)})


def tools_told(prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, as a chat template is told of them."""
    return {"tools": prompts["tools"]} if prompts.get("tools") else {}


class PlainBetween:
    """Messages as they are, one after the other."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokens(self, messages: Sequence[Utterance], last: int | None) -> list[list[int]]:
        return [plain(self._tokenizer, message.content) for message in messages]

    def notes(self, *, anew: bool = False) -> list[str]:
        return []


class ChatBetween:
    """Messages as the model's chat template writes them after an assistant's, with the next assistant's turn opened.

    The template writes around marks that stand for the texts: its own special tokens are special, those that a text names are
    not. Of the end of the assistant's turn, which it writes first, what the policy drew itself is left out.
    """

    def __init__(self, tokenizer: Any, told: Mapping[str, Any]) -> None:
        self._tokenizer, self._told = tokenizer, told

    def tokens(self, messages: Sequence[Utterance], last: int | None) -> list[list[int]]:
        if not messages:
            return []
        *before, behind = self._around(messages)
        texts = zip(before, messages, strict=True)
        found = [[*self._special(text), *plain(self._tokenizer, message.content)] for text, message in texts]
        found[-1] += self._special(behind)
        if last is not None and found[0][:1] == [last]:
            found[0] = found[0][1:]
        return found

    def notes(self, *, anew: bool = False) -> list[str]:
        """Says so if the template, rendered anew, would write an earlier turn otherwise than it was drawn."""
        reasoning, answer = MARK.format("reasoning"), MARK.format("answer")
        drawn = f"<think>\n{reasoning}\n</think>\n\n{answer}"
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": drawn}, {"role": "user", "content": "?"}]
        written = self._rendered(chat)
        if drawn in written:
            return []
        lost = "leaves the reasoning of earlier turns out" if reasoning not in written else "writes earlier turns otherwise"
        if anew:
            return [f"the model's chat template {lost} when a chat goes on. Each turn sees the chat so, and is a row of its own"]
        return [
            f"the model's chat template {lost} when a chat goes on. Episodes keep every token as it was drawn: later turns see "
            "what the policy really wrote, and training sees it too"
        ]

    def _rendered(self, chat: Sequence[Mapping[str, Any]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=True, strftime_now=DAY.strftime, **self._told
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"environment: the model's chat template refuses its messages: {error}") from None
        return text

    def _around(self, messages: Sequence[Utterance]) -> list[str]:
        """What the template writes before, between and behind the texts.

        Raises:
            UserError: it refuses such messages, or leaves one of them out.
        """
        marks = [MARK.format(number) for number in range(len(messages))]
        chat: list[dict[str, Any]] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK.format("a")}]
        for message, mark in zip(messages, marks, strict=True):
            chat.append({"role": message.role, "content": mark, **({"name": message.name} if message.name else {})})
        text = self._rendered(chat)
        texts, rest = [], text.rpartition(MARK.format("a"))[2]
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                raise UserError("environment: the model's chat template leaves out what it says; expected roles user and tool")
            texts.append(before)
        return [*texts, rest]

    def _special(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids


def plain(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which no special token is meant."""
    found: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
    return found
