"""Rollouts that are written in other tokens than the run's are refused before any work."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.common.errors import UserError
from pipeline.config.shape import ReplayConfig
from pipeline.shape.mix.tokens import check_tokens
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts

WORDS = ["the", "answer", "is", "seven"]


def tokenizer_at(path: Path, words: list[str]) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


@pytest.fixture
def rollouts(store: Store) -> Artifact:
    """One completion without a text, and one that ends with a stop text that was cut off."""
    common = {
        **{"group_id": "g", "prompt_id": "p", "prompt_token_ids": [0], "prompt_text": "the", "policy_id": "c0ffee"},
        **{"policy_version": 0, "source": "self", "logprobs_mode": "unknown", "engine": "none", "status": "ok", "reward": 1.0},
    }
    rows = [
        {**common, "sample_index": 0, "completion_token_ids": [], "completion_text": ""},
        {**common, "sample_index": 1, "completion_token_ids": [1, 2, 3, 0], "completion_text": " answer is seven"},
    ]
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    with store.work(Request("rollouts", "test/1", {})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        return work.finish({"groups": 1})


def test_rollouts_in_the_models_tokens_are_accepted(rollouts: Artifact, tmp_path: Path) -> None:
    replay = ReplayConfig.model_validate({"artifacts": [{"path": str(rollouts.path)}]})
    check_tokens(replay, tokenizer_at(tmp_path / "tokenizer.json", WORDS))
    check_tokens(replay, tmp_path / "nowhere.json")


def test_rollouts_in_other_tokens_are_refused(rollouts: Artifact, tmp_path: Path) -> None:
    replay = ReplayConfig.model_validate({"artifacts": [{"path": str(rollouts.path)}]})
    with pytest.raises(
        UserError, match=r"its tokens are not those of this run's model: a completion ' answer is seven' reads 'is"
    ):
        check_tokens(replay, tokenizer_at(tmp_path / "tokenizer.json", WORDS[1:] + WORDS[:1]))
