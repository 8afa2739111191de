"""What a checkpoint says about tokens: how many there are, and which text some of them spell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World

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


class Decoder:
    """A checkpoint's tokenizer, without code of the checkpoint's own.

    Texts are decoded with the tokenizers library, and those that seem to differ once more with transformers, which engines
    use and which knows more settings.
    """

    def __init__(self, checkpoint: Held, tokenizer: Tokenizer, world: World) -> None:
        self._checkpoint, self._tokenizer, self._world = checkpoint, tokenizer, world
        self._full: Any = None

    @classmethod
    def of(cls, checkpoint: Held, world: World) -> Decoder | None:
        path = world.read(checkpoint, "tokenizer.json")
        if path is None:
            return None
        from tokenizers import Tokenizer

        try:
            return cls(checkpoint, Tokenizer.from_file(str(path)), world)
        except Exception:  # the library raises nothing narrower
            return None

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """What tokens spell, special tokens left out."""
        return list(self._tokenizer.decode_batch([list(part) for part in ids], skip_special_tokens=True))

    def full_text(self, ids: Sequence[int]) -> str:
        """The same by transformers."""
        if self._full is None:
            from transformers import AutoTokenizer

            for file in self._checkpoint.files:
                if not file.path.endswith(".safetensors"):
                    self._world.read(self._checkpoint, file.path)
            self._full = AutoTokenizer.from_pretrained(self._checkpoint.folder.place.path, trust_remote_code=False)
        return str(self._full.decode(list(ids), skip_special_tokens=True))
