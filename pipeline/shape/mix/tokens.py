"""Whether rollouts from elsewhere are written in the run's tokens: trained on as they are, others would be noise."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.common.errors import UserError
from pipeline.config.shape import ReplayConfig
from pipeline.shape.mix.shares import named_rollouts
from pipeline.store import Artifact

LOOKED_AT = 16
"""Completions that are decoded."""


def check_tokens(replay: ReplayConfig, tokenizer: Path) -> None:
    """Refuse named rollouts of which no completion decodes to its own text.

    Args:
        tokenizer: the model's tokenizer.json. Without one nothing is checked.

    Raises:
        UserError: names the place.
    """
    for named in replay.artifacts:
        check_tokens_of(named_rollouts(named.path), tokenizer, f"replay.artifacts: {named.path}")


def check_tokens_of(rollouts: Artifact, tokenizer: Path, called: str) -> None:
    """Refuse rollouts of which no completion decodes to its own text.

    Args:
        tokenizer: the model's tokenizer.json. Without one nothing is checked.
        called: what the refusal calls them.

    Raises:
        UserError: names them.
    """
    if not tokenizer.is_file():
        return
    from tokenizers import Tokenizer

    written = _completions(rollouts)
    read = Tokenizer.from_file(str(tokenizer)).decode_batch(written["completion_token_ids"].to_list(), skip_special_tokens=True)
    texts = written["completion_text"].to_list()
    if texts and not any(_agree(text, again) for text, again in zip(texts, read, strict=True)):
        raise UserError(
            f"{called}: its tokens are not those of this run's model: a completion {texts[0][:40]!r} "
            f"reads {read[0][:40]!r}. Name rollouts of the same model, or of one with the same tokenizer"
        )


def _completions(rollouts: Artifact) -> pl.DataFrame:
    """Some completions with a text."""
    rows = pl.scan_parquet(rollouts.tables("rollouts")[0], glob=False).select("completion_token_ids", "completion_text")
    return rows.filter(pl.col("completion_text").str.strip_chars() != "").head(LOOKED_AT).collect()


def _agree(text: str, again: str) -> bool:
    """Whether a text is what its tokens spell, but for spaces and a stop text that was cut off."""
    return again.strip().startswith(text.strip())
