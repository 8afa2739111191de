"""Whether texts and tokens of rollouts say the same."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipeline.look.audit.findings import Spot
from pipeline.look.audit.rows import MAKE_ANEW
from pipeline.look.audit.tokens import CheckpointDecoder

SPELLED = ("prompt_token_ids", "completion_token_ids", "prompt_text", "completion_text")
INCOMPLETE = "\ufffd"
"""What stands for the bytes of a character that is not whole yet; engines that look for stop texts hold it back."""


@dataclass(frozen=True)
class Spelling:
    """Checks of some rows: `row` (its number in the file) and `SPELLED`."""

    decoder: CheckpointDecoder
    stops: tuple[str, ...]
    """Texts that end a completion."""
    spot: Spot
    keeps_stops: bool = False
    """Whether texts have the stop text that ended them."""

    def check_texts(self, rows: pl.DataFrame) -> None:
        """Completions' texts are what their tokens spell."""
        texts = self.decoder.texts(rows["completion_token_ids"].to_list())
        for row, spelled in zip(rows.iter_rows(named=True), texts, strict=True):
            text, prompt, tokens = row["completion_text"], row["prompt_token_ids"], row["completion_token_ids"]
            if self._spells(spelled, text) or any(self._spells(one, text) for one in self.decoder.spellings(prompt, tokens)):
                continue
            self.spot.error(
                "schema",
                "text",
                expected=f"the text that the tokens spell: {spelled!r}",
                found=text,
                remedy=MAKE_ANEW,
                row=row["row"],
                column="completion_text",
            )

    def _spells(self, spelled: str, text: str) -> bool:
        """A stop text ends the text, but not the tokens: there the text is what stands before it, or with it."""
        if spelled == text or (self.stops and spelled.rstrip(INCOMPLETE) == text):
            return True
        if self.keeps_stops:
            return spelled.startswith(text) and text.endswith(self.stops)
        return spelled.startswith(text) and spelled[len(text) :].startswith(self.stops)

    def check_prompts(self, rows: pl.DataFrame, *, special: bool) -> None:
        """Prompts' tokens are those that the policy's tokenizer.json gives of their text.

        Args:
            special: whether the tokens that the tokenizer puts around a text belong to them.
        """
        for row in rows.unique("prompt_text", keep="first", maintain_order=True).iter_rows(named=True):
            text, tokens = row["prompt_text"], row["prompt_token_ids"]
            if any(tokens == wanted for wanted in self.decoder.prompts(text, special=special)):
                continue
            said = {
                "row": row["row"],
                "column": "prompt_token_ids",
                "found": f"tokens that spell {self.decoder.texts([tokens])[0]!r}",
            }
            if special and self.decoder.begins_twice(text, tokens):
                remedy = (
                    "Nothing is damaged. The model was given the token that begins a sequence twice; newer prompts have it once."
                )
                self.spot.note("schema", "prompt tokens", expected=f"the tokens of {text!r}", **said, remedy=remedy)
            else:
                self.spot.error("schema", "prompt tokens", expected=f"the tokens of {text!r}", **said, remedy=MAKE_ANEW)
