"""Texts beside their tokens, where tokenizers drop the space that a text begins with and stop texts end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.look.audit.findings import Finding, Ledger
from pipeline.look.audit.tables.spelling import Spelling
from pipeline.look.audit.tokens import CheckpointDecoder
from pipeline.sources.tokenizer import encode, load_tokenizer, of_file

PROMPT = "Please work out 24+7."


@pytest.fixture
def decoder(save_tokenizer: Callable[..., Any], tmp_path: Path) -> CheckpointDecoder:
    """Of a tokenizer as Llama's."""
    save_tokenizer(tmp_path, "spaces", tokenizer_class="PreTrainedTokenizerFast")
    nothing: Any = None
    found = CheckpointDecoder(nothing, of_file(tmp_path / "tokenizer.json"), nothing)
    found.__dict__["_loaded"] = load_tokenizer(tmp_path, trust_remote_code=False)
    return found


def findings(
    decoder: CheckpointDecoder, text: str, spelled: str, stops: Sequence[str] = (), keeps: bool = False
) -> list[Finding]:
    """Of one completion, whose tokens spell a text after the prompt's."""
    full = decoder._full
    prompt = encode(full, [PROMPT], special=True)[0]
    tokens = full(PROMPT + spelled)["input_ids"][len(prompt) :]
    row = {"row": 3, "prompt_text": PROMPT, "prompt_token_ids": prompt, "completion_text": text, "completion_token_ids": tokens}
    ledger = Ledger()
    Spelling(decoder, tuple(stops), ledger.at("rollouts/a"), keeps).check_texts(pl.DataFrame([row]))
    return list(ledger.findings)


@pytest.mark.parametrize(
    ("text", "spelled", "stops"),
    [
        ("The answer is 31.", " The answer is 31.", ()),  # as decode has it
        (" The answer is 31.", " The answer is 31.", ()),  # as an engine has it that decodes while it generates
        ("The answer is 31.", " The answer is 31. Stop here", (" Stop",)),
        (" The answer is 31.", " The answer is 31. Stop here", (" Stop", "now")),
        ("", " Stop here", (" Stop",)),
    ],
)
def test_a_sound_text_is_what_its_tokens_spell(
    decoder: CheckpointDecoder, text: str, spelled: str, stops: tuple[str, ...]
) -> None:
    assert findings(decoder, text, spelled, stops) == []


@pytest.mark.parametrize(
    ("text", "spelled", "stops"),
    [
        ("The answer is 24.", " The answer is 31.", ()),
        ("The answer", " The answer is 31.", (" Stop",)),  # no stop text ends it there
        ("  The answer is 31.", " The answer is 31.", ()),
    ],
)
def test_a_text_that_its_tokens_do_not_spell_is_found(
    decoder: CheckpointDecoder, text: str, spelled: str, stops: tuple[str, ...]
) -> None:
    (finding,) = findings(decoder, text, spelled, stops)
    assert (finding.check, finding.severity, finding.row, finding.found) == ("text", "error", 3, text)


def test_a_kept_stop_text_belongs_to_the_text(decoder: CheckpointDecoder) -> None:
    spelled, stops = " The answer is 31. Stop here", (" Stop",)
    assert findings(decoder, "The answer is 31. Stop", spelled, stops, keeps=True) == []
    assert len(findings(decoder, "The answer is 31.", spelled, stops, keeps=True)) == 1
    assert len(findings(decoder, "The answer is 31. Stop", spelled, stops)) == 1


def prompt_findings(decoder: CheckpointDecoder, text: str, tokens: list[int], *, special: bool) -> list[Finding]:
    ledger = Ledger()
    row = {"row": 5, "prompt_text": text, "prompt_token_ids": tokens, "completion_text": "", "completion_token_ids": [4]}
    Spelling(decoder, (), ledger.at("rollouts/a")).check_prompts(pl.DataFrame([row, row]), special=special)
    return list(ledger.findings)


def test_tokens_of_prompts_are_those_of_the_file(decoder: CheckpointDecoder) -> None:
    full = decoder._full
    begun = f"<s>{PROMPT}"
    for text, special in ((PROMPT, True), (PROMPT, False), (begun, True), (begun, False)):
        assert prompt_findings(decoder, text, encode(full, [text], special=special)[0], special=special) == []
    (lost,) = prompt_findings(decoder, PROMPT, encode(full, [PROMPT.replace(" ", "")], special=True)[0], special=True)
    assert (lost.check, lost.severity, lost.row) == ("prompt tokens", "error", 5)
    assert "tokens that spell 'Pleaseworkout24+7.'" in str(lost.found)
    (twice,) = prompt_findings(decoder, begun, full(begun)["input_ids"], special=True)
    assert (twice.check, twice.severity) == ("prompt tokens", "note")
