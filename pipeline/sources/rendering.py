"""Questions as the model is given them, and whether that leaves room for a completion."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.sources.dialogues import Asked, size_of
from pipeline.sources.models import chat_template_bytes, chat_template_text, positions
from pipeline.sources.tokenizer import encode, load_tokenizer
from pipeline.sources.tools import schemas_of

Render = Callable[[Sequence[Asked]], list[str]]
NO_CHAT_TEMPLATE = "data.chat: this model's tokenizer has no chat template. Set chat: false and write data.template"
DAY = datetime(2024, 7, 26)
"""What chat templates that write today's date (Llama 3.2's) are told it is: their own date where they are not told one."""
MOST_AROUND = 64
"""Bytes that a tokenizer and a chat template may add to a prompt beside what the template's own text says."""


@dataclass(frozen=True)
class Rendering:
    """How questions become prompts."""

    model: str
    """Directory of the model."""
    template: str
    chat: bool
    system: str | None
    trust_remote_code: bool
    context: int | None
    """Tokens of the longest prompt with its completion; None if nobody says."""
    told: str = "{}"
    """What the chat template is told beside the messages, as a JSON object."""

    @classmethod
    def of(cls, config: RunConfig, model: Path) -> Rendering:
        """A run's."""
        data, longest = config.data, [config.engine.max_model_len, positions(model / "config.json")]
        context = min((limit for limit in longest if limit), default=None)
        told = {**data.chat_template_kwargs, **({"tools": schemas} if (schemas := tools_of(config)) else {})}
        spelled = json.dumps(told, sort_keys=True)
        return cls(str(model), data.template, data.chat, data.system, config.model.trust_remote_code, context, spelled)

    def renderer(self, tokenizer: Any = None) -> Render:
        """
        Raises:
            UserError: the template cannot be filled in, or the model has no chat template.
        """
        if not self.chat:
            return template_renderer(self.template)
        return chat_renderer(tokenizer or self._tokenizer(), self.template, self.system, json.loads(self.told))

    def misfits(self, questions: Sequence[Asked]) -> dict[int, str]:
        """Why prompts leave no room for a completion, by the question's number.

        A token is at least one byte, so only prompts that have as many bytes as the context has tokens are rendered, and
        their tokens counted.
        """
        if self.context is None:
            return {}
        around = self._around()
        sizes = (size_of(asked) for asked in questions)
        long = [number for number, (size, count) in enumerate(sizes) if size + around + (count - 1) * MOST_AROUND >= self.context]
        if not long:
            return {}
        tokenizer = self._tokenizer()
        prompts = self.renderer(tokenizer)([questions[number] for number in long])
        lengths = [len(ids) for ids in encode(tokenizer, prompts, special=not self.chat)]
        remedy = "shorten it, or raise engine.max_model_len if the model takes more"
        return {
            number: f"the prompt has {length} tokens, and the context holds {self.context} with its completion; {remedy}"
            for number, length in zip(long, lengths, strict=True)
            if length >= self.context
        }

    def refuse_unfit(self, name: str, dialogue: str | None) -> None:
        """
        Args:
            name: of the set.
            dialogue: a prompt that is a dialogue.

        Raises:
            UserError: a dialogue, and no chat template that writes it; the chat template does not read what it is told.
        """
        if self.chat:
            refuse_unread(chat_template_text(Path(self.model)), json.loads(self.told))
        elif dialogue is not None:
            raise UserError(
                f"{name}: prompt {dialogue!r} has a system message or earlier turns before its question, which only a chat "
                "template writes. Set data.chat: true"
            )

    def about_longest(self, questions: Sequence[Asked]) -> int:
        """About how many tokens the longest prompt has: told by its text, three bytes a token, without loading the tokenizer."""
        most = max((size_of(asked)[0] for asked in questions), default=0)
        own = chat_template_bytes(Path(self.model)) if self.chat else 0
        return (most + len(self.template.encode()) + len((self.system or "").encode()) + own // 2) // 3 + 1

    def _around(self) -> int:
        """Bytes that a prompt may have beside its question: of texts written around it, those of a chat template twice."""
        own = chat_template_bytes(Path(self.model)) if self.chat else 0
        return len(self.template.encode()) + len((self.system or "").encode()) + 2 * own + MOST_AROUND

    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(Path(self.model), trust_remote_code=self.trust_remote_code)
        tokenizer.model_max_length = sys.maxsize  # or transformers says that longer texts lead to errors
        return tokenizer


def tools_of(config: RunConfig) -> list[dict[str, Any]]:
    """Schemas of the tools that the chat template is told of.

    Raises:
        UserError: tools without a chat template, or one of which no schema can be made.
    """
    tools = config.environment.tools if config.environment else ()
    if tools and not config.data.chat:
        raise UserError("environment.tools: models are told of tools by their chat templates. Set data.chat: true")
    return schemas_of(tools)


def template_renderer(template: str) -> Render:
    """Fill {question} in; every other brace stays as it is. Of dialogues only a chat template makes a text.

    Raises:
        UserError: the template does not mention {question}.
    """
    if "{question}" not in template:
        raise UserError("data.template: has no {question} in it")
    return lambda questions: [template.replace("{question}", str(question)) for question in questions]


def chat_renderer(tokenizer: Any, template: str, system: str | None, told: Mapping[str, Any] | None = None) -> Render:
    """Render with the model's chat template, with the user's turn last and the assistant's opened. The same on every day.

    Args:
        system: what dialogues without a system message of their own begin with.
        told: what the chat template is told beside the messages.

    Raises:
        UserError: the tokenizer has no chat template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError(NO_CHAT_TEMPLATE)
    template_renderer(template)

    def render(questions: Sequence[Asked]) -> list[str]:
        chats, more = [chat_messages(asked, template, system) for asked in questions], dict(told or {})
        try:
            return list(
                tokenizer.apply_chat_template(
                    chats, tokenize=False, add_generation_prompt=True, strftime_now=DAY.strftime, **more
                )
            )
        except jinja2.TemplateError as error:
            raise UserError(f"data.chat: the model's chat template refuses these messages: {error}") from None

    return render


def chat_messages(asked: Asked, template: str, system: str | None) -> list[dict[str, Any]]:
    """The messages that a chat template is given of a question.

    Args:
        system: what dialogues without a system message of their own begin with.
    """
    fill = template_renderer(template)
    head = [{"role": "system", "content": system}] if system else []
    if isinstance(asked, str):
        return [*head, {"role": "user", "content": fill([asked])[0]}]
    *earlier, last = asked
    own = head if not earlier or earlier[0]["role"] != "system" else []
    return [*own, *earlier, {**last, "content": fill([last["content"]])[0]}]


def refuse_unread(template: str, told: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: a chat template does not mention what it is told.
    """
    for name in told:
        if re.search(rf"\b{re.escape(name)}\b", template):
            continue
        if name == "tools":
            raise UserError(
                "environment.tools: the model's chat template knows no tools. Use a model whose template does, or an environment "
                "of your own that reads calls as your prompts describe them"
            )
        else:
            raise UserError(
                f"data.chat_template_kwargs: the model's chat template never reads {name!r}, so it would change nothing"
            )
