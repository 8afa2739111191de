"""Pairs of texts out of rollouts: which completion of a prompt is preferred, how surely, and which prompts are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.common.errors import DataError
from pipeline.common.lengths import length
from pipeline.config.reward_model import PairsConfig
from pipeline.store import Artifact
from pipeline.store.tables import scan_table
from schemas import Rollouts

NAMES = ["group_id", "sample_index"]


@dataclass(frozen=True)
class TextPair:
    """Two texts, each a prompt and a completion of it as the `reward_model` grader puts them together."""

    prompt: str
    chosen: str
    rejected: str
    preference: float
    """That the first is better: 1 for a hard label, 1/2 for a tie."""
    margin: float
    """Difference of their rewards."""
    tokens: tuple[int, int]
    """Of each completion, for what is told of length."""


def text_pairs(rollouts: Sequence[Artifact], config: PairsConfig) -> list[TextPair]:
    """Every pair, in the order of the rollouts' groups.

    Raises:
        DataError: an artifact has none: all rewards of each of its groups are alike, or missing.
    """
    pairing = RewardPairs(strategy="all", margin=config.margin, cap=config.cap, soft=config.soft, ties=config.ties)
    found: list[TextPair] = []
    for artifact in rollouts:
        rows = scan_table(artifact, Rollouts).filter(pl.col("status").is_in(["ok", "truncated"]), pl.col("reward").is_not_null())
        frame = rows.select(*NAMES, "reward", "prompt_text", "completion_text", tokens=length("completion_token_ids")).collect()
        pairs = pairing.pairs(frame)
        if pairs.filter(pl.col("margin") > 0).is_empty():
            raise DataError(
                f"{artifact.url}: no two completions of one prompt have rewards that differ by {config.margin:g}, so nothing "
                "says which is better. Grade them by what tells them apart, or name rollouts with preferences"
            )
        found += _with_texts(pairs, frame)
    return found


def _with_texts(pairs: pl.DataFrame, frame: pl.DataFrame) -> list[TextPair]:
    for side in ("chosen", "rejected"):
        texts = frame.select(
            "group_id",
            pl.col("sample_index").alias(f"{side}_index"),
            pl.col("completion_text").alias(side),
            pl.col("tokens").alias(f"{side}_tokens"),
            *(["prompt_text"] if side == "chosen" else []),
        )
        pairs = pairs.join(texts, on=["group_id", f"{side}_index"], how="left", maintain_order="left")
    return [
        TextPair(
            row["prompt_text"],
            row["prompt_text"] + row["chosen"],
            row["prompt_text"] + row["rejected"],
            row["preference"],
            row["margin"],
            (row["chosen_tokens"], row["rejected_tokens"]),
        )
        for row in pairs.iter_rows(named=True)
        if row["chosen"] != row["rejected"]
    ]


def split(pairs: Sequence[TextPair], share: float, seed: int) -> tuple[list[TextPair], list[TextPair]]:
    """Pairs to train on and pairs that are held out. All pairs of one prompt text are on one side.

    Raises:
        DataError: one side has none.
    """
    sides: tuple[list[TextPair], list[TextPair]] = ([], [])
    for pair in pairs:
        drawn = int.from_bytes(hashlib.sha256(f"{seed} {pair.prompt}".encode()).digest()[:8], "big") / 2**64
        sides[drawn < share].append(pair)
    if not all(sides):
        prompts = len({pair.prompt for pair in pairs})
        raise DataError(
            f"pairs.heldout: {share:g} of the {prompts} prompts that have pairs leaves {len(sides[0])} pairs for training and "
            f"{len(sides[1])} to judge by. More prompts are needed, or another share or seed"
        )
    return sides
