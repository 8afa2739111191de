"""What a checkpoint says about tokens: how many there are, and which text some of them spell."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import UserError
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from pipeline.sources.tokenizer import FILE, encode, load_tokenizer, of_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def vocabulary_of(checkpoint: Held, world: World) -> int | None:
    """Number of tokens, by the checkpoint's config; None if it does not say."""
    config = world.json(checkpoint, "config.json")
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    size = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return size if isinstance(size, int) else None


class CheckpointDecoder:
    """A checkpoint's tokenizer, without code of the checkpoint's own.

    Texts are decoded with the tokenizers library, and those that seem to differ once more with transformers, which knows more
    settings. Safe to call from many threads.
    """

    def __init__(self, checkpoint: Held, tokenizer: Tokenizer, world: World) -> None:
        self._checkpoint, self._tokenizer, self._world = checkpoint, tokenizer, world
        self._guard = threading.Lock()

    @classmethod
    def of(cls, checkpoint: Held, world: World) -> CheckpointDecoder | None:
        path = world.read(checkpoint, FILE)
        try:
            return None if path is None else cls(checkpoint, of_file(path), world)
        except UserError:
            return None

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """What tokens spell, special tokens left out."""
        return list(self._tokenizer.decode_batch([list(part) for part in ids], skip_special_tokens=True))

    def spellings(self, prompt: Sequence[int], ids: Sequence[int]) -> Iterator[str]:
        """The texts that tokens of a completion may have.

        What they spell by themselves; what they add to the text of the prompt, as engines have it that decode while they
        generate (some tokenizers begin every text without its space); and what transformers makes of them.
        """
        yield from self.texts([ids])
        before, both = self.texts([prompt, [*prompt, *ids]])
        if both.startswith(before):
            yield both[len(before) :]
        yield str(self._full.decode(list(ids), skip_special_tokens=True))

    def prompts(self, text: str, *, special: bool) -> Iterator[list[int]]:
        """The tokens that a prompt may have, as `sources.tokenizer.encode`: by the file alone, and by transformers."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        if ids[:1] != ids[1:2]:  # else it may begin twice
            yield ids
        yield from encode(self._full, [text], special=special)

    def begins_twice(self, text: str, ids: Sequence[int]) -> bool:
        """Whether tokens are those of a text that begins as sequences do, with that token once more before it."""
        first, begin = self._full.bos_token_id, self._full.bos_token
        if first is None or list(ids[:2]) != [first, first] or not text.startswith(begin):
            return False
        return list(ids[1:]) in encode(self._full, [text], special=True)

    @property
    def _full(self) -> Any:
        with self._guard:
            return self._loaded

    @cached_property
    def _loaded(self) -> Any:
        for file in self._checkpoint.files:
            if not file.path.endswith(".safetensors"):
                self._world.read(self._checkpoint, file.path)
        return load_tokenizer(self._checkpoint.folder.place.path, trust_remote_code=False)
