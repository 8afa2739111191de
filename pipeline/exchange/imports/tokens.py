"""Token ids and texts where a source has only one of the two, from the tokenizer of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from pipeline.common.errors import UserError
from pipeline.exchange.imports.known import Known, Messages
from pipeline.sources.models import TOKENIZERS, model_files
from pipeline.sources.rendering import DAY, template_renderer
from pipeline.sources.tokenizer import encode, load_tokenizer
from pipeline.store.files import sha256_of

Eos = Literal["auto", "always", "never"]
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "merges.txt")
"""Files that decide tokens too."""
NO_TOKENS = "the prompt has no tokens"
"""After nothing a model says nothing, so the first completion token could have no logprob."""


@dataclass(frozen=True, kw_only=True)
class ImportRendering:
    """How prompts that are text become what the model is given."""

    template: str = "{question}"
    chat: bool = False
    """Render a text as a user's message. Messages are always rendered."""
    eos: Eos = "auto"
    """Whether tokens made from text get the end-of-sequence token. auto: where the source says that the model stopped."""


@dataclass(frozen=True)
class Tokenized:
    """What a completion's row has of texts and tokens."""

    prompt_text: str
    prompt_tokens: list[int]
    completion_text: str
    completion_tokens: list[int]
    logprobs: list[float] | None
    retokenized: bool
    unaligned: list[float] | None = None
    """Logprobs of tokens that the source does not name, and that ours are not."""


class SourceTokenizer:
    """A checkpoint's tokenizer, or none: then a source must have both texts and ids."""

    def __init__(
        self, model: Path | None, rendering: ImportRendering, *, whole_answers: bool, trust_remote_code: bool = False
    ) -> None:
        """
        Args:
            whole_answers: completions end because their author was done.

        Raises:
            UserError: not a model directory, or its tokenizer cannot be loaded.
        """
        self._rendering, self._whole_answers = rendering, whole_answers
        self._fill = template_renderer(rendering.template)
        self._tokenizer: Any = load_tokenizer(model, trust_remote_code=trust_remote_code) if model else None
        if self._tokenizer:
            self._tokenizer.model_max_length = sys.maxsize  # or transformers says that longer texts lead to errors
        self.vocabulary: int | None = _vocabulary(model, self._tokenizer) if model else None
        if rendering.chat and not (self._tokenizer and self._tokenizer.chat_template):
            raise UserError("--chat: name a --model whose tokenizer has a chat template")

    def of(self, known: Sequence[Known]) -> list[Tokenized | ValueError]:
        """Texts and tokens of some completions; of one that has too little of either, what is wrong."""
        found: list[Tokenized | ValueError] = []
        for one in known:
            try:
                found.append(self._of(one))
            except ValueError as error:
                found.append(error)
        return found

    def _of(self, known: Known) -> Tokenized:
        prompt_text, prompt_tokens = self._prompt(known)
        text, tokens = known.completion, known.completion_tokens
        if text is None and tokens is None:
            raise ValueError("has no completion, neither as text nor as token ids")
        retokenized = known.prompt_tokens is None or tokens is None
        logprobs, unaligned = known.logprobs, None
        if tokens is None:
            assert text is not None
            tokens = self._encoded(text, special=False)
            if self._ends(known):
                tokens = [*tokens, self._eos()]
            logprobs, unaligned = self._aligned(known, tokens)
        if text is None:
            text = self._decoded(tokens, skip_special=True)
        if logprobs is not None and len(logprobs) != len(tokens):
            raise ValueError(f"has {len(logprobs)} logprobs for {len(tokens)} completion tokens")
        for name, ids in (("prompt", prompt_tokens), ("completion", tokens)):
            if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
                raise ValueError(f"{name} token id {max(ids)} is outside the vocabulary of --model ({self.vocabulary})")
        return Tokenized(prompt_text, prompt_tokens, text, tokens, logprobs, retokenized, unaligned)

    def _prompt(self, known: Known) -> tuple[str, list[int]]:
        prompt, tokens = known.prompt, known.prompt_tokens
        if prompt is None and tokens is None:
            raise ValueError("has no prompt, neither as text nor as token ids")
        if tokens is not None and not tokens:
            raise ValueError(NO_TOKENS)
        if prompt is None:
            assert tokens is not None
            return self._decoded(tokens, skip_special=False), tokens
        if tokens is not None:
            return (prompt if isinstance(prompt, str) else self._rendered(prompt)), tokens
        is_chat = self._rendering.chat or not isinstance(prompt, str)
        asked = prompt if not isinstance(prompt, str) else self._fill([prompt])[0]
        text = self._rendered(asked if isinstance(asked, list) else [{"role": "user", "content": asked}]) if is_chat else asked
        assert isinstance(text, str)
        tokens = self._encoded(text, special=not is_chat)
        if not tokens:
            raise ValueError(NO_TOKENS)
        return text, tokens

    def _rendered(self, messages: Messages) -> str:
        tokenizer = self._needed("the prompts are chat messages")
        if not tokenizer.chat_template:
            raise UserError(
                "the prompts are chat messages, and the tokenizer of --model has no chat template. Name another --model"
            )
        try:
            today = DAY.strftime
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, strftime_now=today))
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template of --model refuses the prompt's messages: {error}") from None

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        tokenizer = self._needed("the source has text without token ids")
        return encode(tokenizer, [text], special=special)[0]

    def _decoded(self, tokens: list[int], *, skip_special: bool) -> str:
        tokenizer = self._needed("the source has token ids without text")
        try:
            return str(tokenizer.decode(tokens, skip_special_tokens=skip_special))
        except (OverflowError, IndexError, TypeError) as error:
            raise ValueError(f"the tokenizer of --model cannot decode the token ids: {error}") from None

    def _ends(self, known: Known) -> bool:
        eos = self._rendering.eos
        return eos == "always" or (eos == "auto" and (self._whole_answers or known.finish_reason == "stop"))

    def _eos(self) -> int:
        if self._tokenizer.eos_token_id is None:
            raise UserError("the tokenizer of --model has no end-of-sequence token. Add --eos never")
        return int(self._tokenizer.eos_token_id)

    def _aligned(self, known: Known, tokens: list[int]) -> tuple[list[float] | None, list[float] | None]:
        """Logprobs whose tokens spell what ours do, one by one, and those that do not. Some servers give none of the last."""
        if known.logprobs is None:
            return None, None
        spelled = [self._decoded([token], skip_special=False) for token in tokens]
        return (known.logprobs, None) if known.logprob_texts == spelled else (None, known.logprobs)

    def _needed(self, why: str) -> Any:
        if self._tokenizer is None:
            raise UserError(f"{why}. Name the checkpoint whose tokenizer made it: --model DIRECTORY")
        return self._tokenizer


def tokenizer_hashes(model: Path, *, trust_remote_code: bool = False) -> dict[str, str]:
    """sha256 of the files that decide a checkpoint's tokens, by name.

    Raises:
        UserError: not a model directory.
    """
    files = model_files(model, trust_remote_code=trust_remote_code)
    names = [name for name in files if name in (*TOKENIZERS, *BESIDE) or name.endswith(".tiktoken")]
    return {name: sha256_of(files[name]) for name in sorted(names)}


def _vocabulary(model: Path, tokenizer: Any) -> int:
    """Ids that the model has: as many as its embedding has rows, or more where the tokenizer has more."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    return max(int(getattr(config.get_text_config(), "vocab_size", 0) or 0), len(tokenizer))
