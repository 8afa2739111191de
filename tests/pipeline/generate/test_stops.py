"""Texts that end a completion."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from pipeline.generate.stage import vain_stops

BASE = Path(__file__).parents[3] / "data/base"


def test_a_stop_text_with_a_special_token_in_it_is_found() -> None:
    """Texts have no special tokens. <eos> ends a completion by itself, and <other> is no token of this model."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert vain_stops(tokenizer, BASE, ["<pad>", "<eos>", "\n", "a<unk>", "<other>", "<pad>"]) == ["<pad>", "a<unk>"]
