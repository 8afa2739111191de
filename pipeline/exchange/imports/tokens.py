"""Token ids and texts where a source has only one of the two, from the tokenizer of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.exchange.imports.known import Known, Messages, SourceRow
from pipeline.exchange.imports.turns import Turn, written_turns
from pipeline.sources.models import TOKENIZERS, model_files
from pipeline.sources.recalled_tokenizer import tokenizer_and_vocabulary
from pipeline.sources.rendering import DAY, template_renderer
from pipeline.sources.tokenizer import encode, encode_flat
from pipeline.store.files import sha256_of

Eos = Literal["auto", "always", "never"]
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "merges.txt")
"""Files that decide tokens too."""
NO_TOKENS = "the prompt has no tokens"
"""After nothing a model says nothing, so the first completion token could have no logprob."""
NO_TEMPLATE = (
    "the prompt is a chat of several turns, and the tokenizer of --model has no chat template. Name the --model that was asked"
)
OUTSIDE = "a token id is outside the vocabulary of --model"
TEXTS_ALONE = (
    "prompts are chats and --model has no chat template: each is the system's and the user's text, on lines of their own"
)


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
    action_mask: list[bool] | None
    retokenized: bool
    unaligned: list[float] | None = None
    """Logprobs of tokens that the source does not name, and that ours are not."""


class Ids(NamedTuple):
    """Token ids of some texts, one after the other."""

    flat: NDArray[np.int32]
    """[tokens]"""
    lengths: NDArray[np.int64]
    """[texts]"""

    def gather(self, places: NDArray[np.int64]) -> Ids:
        """Those of the texts at these places.

        >>> Ids(np.array([7, 8, 9]), np.array([1, 2])).gather(np.array([1, 0, 1])).flat
        array([8, 9, 7, 8, 9])
        """
        lengths = self.lengths[places]
        starts = (np.cumsum(self.lengths) - self.lengths)[places]
        shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        return Ids(self.flat[shift + np.arange(len(shift))], lengths)

    def last(self) -> NDArray[np.int64]:
        """The last id of each text, -1 of one that has none."""
        found = np.full(len(self.lengths), -1, np.int64)
        some = self.lengths > 0
        found[some] = self.flat[np.cumsum(self.lengths)[some] - 1]
        return found

    def ended(self, which: NDArray[np.bool_], end: int) -> Ids:
        """With this id at the end of the texts that are marked, unless it is there.

        >>> Ids(np.array([7, 8, 9]), np.array([1, 2])).ended(np.array([True, True]), 9).flat
        array([7, 9, 8, 9])
        """
        which = which & (self.last() != end)
        flat = np.insert(self.flat, np.cumsum(self.lengths)[which], end)
        return Ids(flat, self.lengths + which)


@dataclass
class _Prompt:
    """A prompt on its way to tokens: those that the source has, or a text that becomes them."""

    text: str | None
    tokens: list[int] | None
    special: bool = False
    """Put around the text what the tokenizer puts around one."""


@dataclass
class _Answer:
    """A completion on its way to tokens: those that the source has, or pieces of text that become them."""

    text: str | None
    tokens: list[int] | None
    pieces: list[Turn] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    """Of the pieces."""


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
        self._tokenizer: Any = None
        self.vocabulary: int | None = None
        if model:
            self._tokenizer, self.vocabulary = tokenizer_and_vocabulary(model, trust_remote_code=trust_remote_code)
        if rendering.chat and not (self._tokenizer and self._tokenizer.chat_template):
            raise UserError("--chat: name a --model whose tokenizer has a chat template")
        self._spelling: dict[int, str] = {}
        self.remarks: dict[str, None] = {}
        """As a format's: what a reader of the result must know, each said once."""

    def of(self, known: Sequence[Known]) -> list[Tokenized | ValueError]:
        """Texts and tokens of some completions; of one that has too little of either, what is wrong.

        All texts of a batch become tokens in one call, and prompts that are alike become them once.
        """
        parts = [self._parts(one) for one in known]
        whole = [part for part in parts if not isinstance(part, ValueError)]
        self._encode_prompts([prompt for prompt, _ in whole])
        self._encode_answers([answer for _, answer in whole])
        found: list[Tokenized | ValueError] = []
        for one, part in zip(known, parts, strict=True):
            try:
                if isinstance(part, ValueError):
                    raise part
                found.append(self._joined(one, *part))
            except ValueError as error:
                found.append(error)
        return found

    def prompts(self, row: SourceRow, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Prompts that are texts, as the model is given them, and their tokens.

        Args:
            row: any of theirs.

        Raises:
            ValueError: one has no tokens, or such as the model does not have.
        """
        made = [self._prompt(Known(row=row, prompt=text)) for text in texts]
        self._encode_prompts(made)
        found = [(str(one.text), one.tokens or []) for one in made]
        if not all(tokens for _, tokens in found):
            raise ValueError(NO_TOKENS)
        self._refuse_unknown([tokens for _, tokens in found])
        return found

    def answers(self, texts: Sequence[str], reasons: Sequence[str | None]) -> tuple[list[str], Ids]:
        """Completions that are texts, and their tokens.

        Args:
            reasons: why they ended.

        Raises:
            ValueError: one has tokens that the model does not have.
        """
        number: dict[str, int] = {}
        places = [number.setdefault(text, len(number)) for text in texts]
        ids = Ids(*encode_flat(self._needed("the source has text without token ids"), list(number)))
        if len(number) < len(texts):
            ids = ids.gather(np.array(places, np.int64))
        ended = {reason: self._ended(reason) for reason in set(reasons)}
        if any(ended.values()):
            ids = ids.ended(np.fromiter(map(ended.__getitem__, reasons), np.bool_, len(reasons)), self._eos())
        said = self._tokenizer.eos_token
        whole = list(texts)
        if said and any(text.endswith(said) for text in texts):
            closed = ids.last() == self._tokenizer.eos_token_id
            whole = [text.removesuffix(said) if end else text for text, end in zip(texts, closed, strict=True)]
        if self.vocabulary is not None and len(ids.flat) and int(ids.flat.max()) >= self.vocabulary:
            raise ValueError(OUTSIDE)
        return whole, ids

    def _refuse_unknown(self, ids: Sequence[list[int]]) -> None:
        if self.vocabulary is not None and max(map(max, filter(None, ids)), default=0) >= self.vocabulary:
            raise ValueError(OUTSIDE)

    def _parts(self, known: Known) -> tuple[_Prompt, _Answer] | ValueError:
        try:
            return self._prompt(known), self._answer(known)
        except ValueError as error:
            return error

    def _encode_prompts(self, prompts: list[_Prompt]) -> None:
        for special in (False, True):
            lacking = [one for one in prompts if one.tokens is None and one.special is special]
            texts = list(dict.fromkeys(str(one.text) for one in lacking))
            ids = dict(zip(texts, self._encoded(texts, special=special), strict=True))
            for one in lacking:
                one.tokens = ids[str(one.text)]

    def _encode_answers(self, answers: list[_Answer]) -> None:
        lacking = [piece.text for one in answers if one.tokens is None for piece in one.pieces]
        ids = iter(self._encoded(lacking, special=False))
        for one in answers:
            if one.tokens is None:
                one.ids = [next(ids) for _ in one.pieces]

    def _joined(self, known: Known, prompt: _Prompt, answer: _Answer) -> Tokenized:
        assert prompt.tokens is not None
        if not prompt.tokens:
            raise ValueError(NO_TOKENS)
        retokenized = known.prompt_tokens is None or answer.tokens is None
        tokens, mask, logprobs, unaligned = answer.tokens, known.action_mask, known.logprobs, None
        text = answer.text
        if tokens is None:
            tokens, mask = self._of_pieces(known, answer)
            text = self._without_end(text, tokens)
            logprobs, unaligned = self._aligned(known, tokens)
        if text is None:
            text = self._decoded(tokens, skip_special=True)
        if logprobs is not None and len(logprobs) != len(tokens):
            raise ValueError(f"has {len(logprobs)} logprobs for {len(tokens)} completion tokens")
        if logprobs is not None and mask is not None and len(mask) == len(tokens):
            logprobs = [logprob if drawn else 0.0 for logprob, drawn in zip(logprobs, mask, strict=True)]
        for name, ids in (("prompt", prompt.tokens), ("completion", tokens)):
            if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
                raise ValueError(f"{name} token id {max(ids)} is outside the vocabulary of --model ({self.vocabulary})")
        prompt_text = prompt.text if prompt.text is not None else self._decoded(prompt.tokens, skip_special=False)
        return Tokenized(prompt_text, prompt.tokens, text, tokens, logprobs, mask, retokenized, unaligned)

    def _of_pieces(self, known: Known, answer: _Answer) -> tuple[list[int], list[bool] | None]:
        """Tokens of a completion's pieces with the end token where it belongs, and which of them the model drew."""
        tokens = [token for ids in answer.ids for token in ids]
        mask = [piece.drawn for piece, ids in zip(answer.pieces, answer.ids, strict=True) for _ in ids]
        if self._ends(known):
            end, written = self._eos(), isinstance(known.completion, list) and bool(known.completion)
            closed = tokens[-1:] == [end] or (written and bool(tokens) and tokens[-1] in self._tokenizer.all_special_ids)
            if not closed:
                tokens, mask = [*tokens, end], [*mask, True]
        return tokens, None if all(mask) else mask

    def _without_end(self, text: str | None, tokens: list[int]) -> str | None:
        """A completion's text without the end token that it may write out."""
        end = self._tokenizer and self._tokenizer.eos_token
        if text and end and text.endswith(end) and tokens[-1:] == [self._tokenizer.eos_token_id]:
            return text.removesuffix(end)
        return text

    def _prompt(self, known: Known) -> _Prompt:
        prompt, tokens = known.prompt, known.prompt_tokens
        if prompt is None and tokens is None:
            raise ValueError("has no prompt, neither as text nor as token ids")
        if tokens is not None and not tokens:
            raise ValueError(NO_TOKENS)
        if tokens is not None:
            if isinstance(prompt, list):
                prompt = self._rendered(prompt) if self._tokenizer and self._tokenizer.chat_template else None
            return _Prompt(prompt, tokens)
        assert prompt is not None
        if isinstance(prompt, list):
            if not self._needed("the prompts are chat messages").chat_template:
                return _Prompt(self._unwritten(prompt), None, special=True)
            return _Prompt(self._rendered(prompt), None)
        asked = prompt if known.prompt_is_whole else self._fill([prompt])[0]
        if self._rendering.chat:
            return _Prompt(self._rendered([{"role": "user", "content": asked}]), None)
        return _Prompt(asked, None, special=not known.prompt_is_whole)

    def _answer(self, known: Known) -> _Answer:
        said, tokens = known.completion, known.completion_tokens
        if said is None and tokens is None:
            raise ValueError("has no completion, neither as text nor as token ids")
        if tokens is not None:
            return _Answer(said if isinstance(said, str) else None, tokens)
        if isinstance(said, str):
            return _Answer(said, None, [Turn(said, drawn=True)] if said else [])
        assert said is not None
        pieces = self._turns(known, said)
        return _Answer("".join(piece.text for piece in pieces), None, pieces)

    def _turns(self, known: Known, said: Messages) -> list[Turn]:
        """The pieces of a completion that is more than one text."""
        tokenizer = self._needed("the completions are chat messages")
        if not tokenizer.chat_template:
            what = "reasoning apart from its text" if len(said) == 1 else "several turns"
            raise ValueError(f"the completion has {what} and no token ids, and the tokenizer of --model has no chat template")
        if not isinstance(known.prompt, list):
            prompt = str(known.prompt or "")
            if known.prompt_is_whole or not (prompt and self._rendering.chat):
                raise ValueError("the completion is chat messages and the prompt a text. Add --chat to render it as the user's")
        chat = known.prompt if isinstance(known.prompt, list) else [{"role": "user", "content": self._fill([prompt])[0]}]
        return written_turns(self._written, chat, said, tokenizer.eos_token, ended=known.finish_reason != "length")

    def _rendered(self, messages: Messages) -> str:
        return self._written(messages, True)

    def _written(self, messages: Messages, opened: bool) -> str:
        tokenizer = self._needed("the prompts are chat messages")
        try:
            today = DAY.strftime
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened, strftime_now=today))
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template of --model refuses the prompt's messages: {error}") from None

    def _unwritten(self, messages: Messages) -> str:
        """What a user asks, behind what a system message says, for a model that was never shown a chat."""
        roles = [message["role"] for message in messages]
        if roles not in (["user"], ["system", "user"], ["developer", "user"]):
            raise ValueError(NO_TEMPLATE)
        self.remarks[TEXTS_ALONE] = None
        return self._fill(["\n".join(str(message["content"]) for message in messages)])[0]

    def _encoded(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        return encode(self._needed("the source has text without token ids"), texts, special=special)

    def _decoded(self, tokens: list[int], *, skip_special: bool) -> str:
        tokenizer = self._needed("the source has token ids without text")
        try:
            return str(tokenizer.decode(tokens, skip_special_tokens=skip_special))
        except (OverflowError, IndexError, TypeError) as error:
            raise ValueError(f"the tokenizer of --model cannot decode the token ids: {error}") from None

    def _ends(self, known: Known) -> bool:
        return self._ended(known.finish_reason)

    def _ended(self, finish_reason: str | None) -> bool:
        """Whether a completion that ended for this reason gets the end token."""
        eos = self._rendering.eos
        ended = finish_reason == "stop" or (self._whole_answers and finish_reason != "length")
        return eos == "always" or (eos == "auto" and ended)

    def _eos(self) -> int:
        if self._tokenizer.eos_token_id is None:
            raise UserError("the tokenizer of --model has no end-of-sequence token. Add --eos never")
        return int(self._tokenizer.eos_token_id)

    def _aligned(self, known: Known, tokens: list[int]) -> tuple[list[float] | None, list[float] | None]:
        """Logprobs whose tokens spell what ours do, one by one, and those that do not. Some servers give none of the last."""
        if known.logprobs is None:
            return None, None
        if known.logprob_texts is None or len(known.logprob_texts) != len(tokens):
            return None, known.logprobs
        spelled = [self._spelled(token) for token in tokens]
        return (known.logprobs, None) if known.logprob_texts == spelled else (None, known.logprobs)

    def _spelled(self, token: int) -> str:
        if token not in self._spelling:
            self._spelling[token] = self._decoded([token], skip_special=False)
        return self._spelling[token]

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


def ids_of(lists: Sequence[list[int]]) -> Ids:
    return Ids(np.fromiter(chain.from_iterable(lists), np.int32), np.fromiter(map(len, lists), np.int64, len(lists)))
