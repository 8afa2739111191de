"""Questions as the model is given them, and whether that leaves room for a completion."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.sources.models import chat_template_bytes, positions
from pipeline.sources.tokenizer import encode, load_tokenizer

Render = Callable[[list[str]], list[str]]
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

    @classmethod
    def of(cls, config: RunConfig, model: Path) -> Rendering:
        """A run's."""
        data, longest = config.data, [config.engine.max_model_len, positions(model / "config.json")]
        context = min((limit for limit in longest if limit), default=None)
        return cls(str(model), data.template, data.chat, data.system, config.model.trust_remote_code, context)

    def renderer(self, tokenizer: Any = None) -> Render:
        """
        Raises:
            UserError: the template cannot be filled in, or the model has no chat template.
        """
        if not self.chat:
            return template_renderer(self.template)
        return chat_renderer(tokenizer or self._tokenizer(), self.template, self.system)

    def misfits(self, questions: list[str]) -> dict[int, str]:
        """Why prompts leave no room for a completion, by the question's number.

        A token is at least one byte, so only prompts that have as many bytes as the context has tokens are rendered, and
        their tokens counted.
        """
        if self.context is None:
            return {}
        around = self._around()
        long = [number for number, text in enumerate(questions) if len(text.encode()) + around >= self.context]
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

    def about_longest(self, questions: list[str]) -> int:
        """About how many tokens the longest prompt has: told by its text, three bytes a token, without loading the tokenizer."""
        most = max((len(text.encode()) for text in questions), default=0)
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


def template_renderer(template: str) -> Render:
    """Fill {question} in; every other brace stays as it is.

    Raises:
        UserError: the template does not mention {question}.
    """
    if "{question}" not in template:
        raise UserError("data.template: has no {question} in it")
    return lambda questions: [template.replace("{question}", question) for question in questions]


def chat_renderer(tokenizer: Any, template: str, system: str | None) -> Render:
    """Render with the model's chat template, as a user's message with the assistant's turn opened. The same on every day.

    Raises:
        UserError: the tokenizer has no chat template, or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError(NO_CHAT_TEMPLATE)
    fill = template_renderer(template)
    head = [{"role": "system", "content": system}] if system else []

    def render(questions: list[str]) -> list[str]:
        chats = [[*head, {"role": "user", "content": text}] for text in fill(questions)]
        try:
            return list(
                tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True, strftime_now=DAY.strftime)
            )
        except jinja2.TemplateError as error:
            raise UserError(f"data.chat: the model's chat template refuses these messages: {error}") from None

    return render
