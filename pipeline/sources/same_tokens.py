"""Whether two models read the same tokens: logprobs of one's completions by another mean nothing otherwise."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import UserError


def check_same_tokens(one: Path, other: Path, called: str) -> None:
    """Refuse a model that spells a token of another otherwise, or does not have it.

    Args:
        one, other: tokenizer.json of the run's model and of the other one. If either has none, nothing is checked.
        called: what the refusal calls the other model.

    Raises:
        UserError: names it, with the first token that differs.
    """
    if not (one.is_file() and other.is_file()) or one.read_bytes() == other.read_bytes():
        return
    from tokenizers import Tokenizer

    ours, theirs = ({id: text for text, id in Tokenizer.from_file(str(file)).get_vocab().items()} for file in (one, other))
    differs = [id for id, text in sorted(ours.items()) if theirs.get(id) != text]
    if differs:
        id = differs[0]
        raise UserError(
            f"{called}: its tokens are not those of this run's model: token {id} is {ours[id]!r} here and "
            f"{theirs.get(id, 'none')!r} there ({len(differs):,} of {len(ours):,} differ). Name a model with the same tokenizer"
        )
