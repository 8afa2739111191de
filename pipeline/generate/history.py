"""The chat as the model's template writes it anew before each turn, for episodes of which each turn is a row.

Some templates write earlier turns otherwise when a chat goes on (Qwen3's leaves their reasoning out), and programs that serve
models render the whole chat for every turn. A policy that is to be used so may be trained so: what a turn sees is then no
continuation of the tokens of the last one, and a row ends with each turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from pipeline.common.errors import UserError
from pipeline.environments.protocol import Observation
from pipeline.generate.between import MARK, plain, tools_told
from pipeline.generate.engine import Reply
from pipeline.sources.dialogues import EARLIER, one_asked
from pipeline.sources.rendering import DAY, chat_messages

HISTORY = 'environment.history "rendered"'


class Rendered:
    """Writes a prompt's chat and what was said since.

    Args:
        tokenizer: with the chat template.
        prompts: recipe of the prompts' artifact.
    """

    def __init__(self, tokenizer: Any, prompts: Mapping[str, Any]) -> None:
        self._tokenizer, self._prompts = tokenizer, prompts
        self._told = {**prompts.get("chat_template_kwargs", {}), **tools_told(prompts)}
        self._names = [name for name in tokenizer.all_special_tokens if name]
        self._special = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or r"(?!)")
        self._mark = re.compile(MARK.format(r"special(\d+)"))

    def message(self, turn: Reply) -> dict[str, Any]:
        """A turn of the policy as a message: its text without the special tokens that it drew."""
        return {"role": "assistant", "content": self._tokenizer.decode(turn.token_ids, skip_special_tokens=True)}

    def messages(self, said: Observation) -> list[dict[str, Any]]:
        """What an environment says as messages."""
        return [{"role": one.role, "content": one.content, **({"name": one.name} if one.name else {})} for one in said.messages]

    def tokens(
        self, prompt: Mapping[str, Any], prompt_ids: list[int], chat: Sequence[Mapping[str, Any]], said: Observation
    ) -> tuple[list[int], list[list[int]]]:
        """Tokens behind the prompt: those before the last messages, and those of each of them, with the next turn opened.

        Where no text names a special token they are, with the prompt's, what `apply_chat_template` gives.

        Args:
            prompt: its row, with metadata unfolded.
            chat: all that was said behind the prompt, what was said last among it.

        Raises:
            UserError: the template refuses the chat, leaves a message out, or does not begin with the prompt.
        """
        if not chat:
            return [], []
        asked = one_asked(prompt["question"], prompt["metadata"].get(EARLIER))
        all_of_it = [*chat_messages(asked, self._prompts["template"], self._prompts.get("system")), *map(self._harmless, chat)]
        text = self._rendered(all_of_it)
        if not text.startswith(prompt["prompt_text"]):
            raise UserError(
                f"{HISTORY}: the model's chat template does not begin a chat that goes on with the prompt of its first turn, so "
                'that rows of an episode would have no prompt in common. Use history: "drawn"'
            )
        ids = self._encoded(text)
        if ids[: len(prompt_ids)] != prompt_ids:  # a token would reach over the prompt's end
            ids = [*prompt_ids, *self._encoded(text[len(prompt["prompt_text"]) :])]
        places = [
            min(max(place, len(prompt_ids)), len(ids))
            for place in self._places(all_of_it[: len(all_of_it) - len(said.messages)], text, said)
        ]
        ends = [*places[1:], len(ids)]
        before = ids[len(prompt_ids) : places[0] if places else len(ids)]
        return before, [ids[place:end] for place, end in zip(places, ends, strict=False)]

    def _places(self, first: Sequence[Mapping[str, Any]], text: str, said: Observation) -> list[int]:
        """Where the last messages begin, in tokens; each follows the one before.

        Args:
            first: the messages before them.
            text: all of it, as it is rendered.
        """
        marks = [MARK.format(number) for number in range(len(said.messages))]
        marked = [{**one, "content": mark} for one, mark in zip(self.messages(said), marks, strict=True)]
        rest, end, places = self._rendered([*first, *marked]), len(text), []
        for message, mark in reversed(list(zip(said.messages, marks, strict=True))):
            rest, found, behind = rest.rpartition(mark)
            content = self._harmless({"content": message.content})["content"]
            end -= len(behind)
            end -= len(content if text[:end].endswith(content) else content.strip())
            if not found or end < 0:
                raise UserError(f"{HISTORY}: the model's chat template leaves out what the environment says")
            places.append(len(self._encoded(text[:end])))
        found_places = places[::-1]
        return [max(found_places[: number + 1]) for number in range(len(found_places))]

    def _harmless(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message in which marks stand for the names of special tokens: a name in a text stays a name."""
        text = self._special.sub(lambda found: MARK.format(f"special{self._names.index(found[0])}"), message["content"])
        return {**message, "content": text}

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._mark.split(text)):
            if number % 2:
                ids += plain(self._tokenizer, self._names[int(part)])
            elif part:
                ids += self._tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def _rendered(self, chat: Sequence[Mapping[str, Any]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=True, strftime_now=DAY.strftime, **self._told
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"environment: the model's chat template refuses its messages: {error}") from None
        return text
