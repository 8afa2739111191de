"""TRL's forms: prompt and completion (SFT), or prompt, chosen and rejected (preference). Both as text.

Prompts are as the model was given them, chat markup included, and completions as it answered, without special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.common.errors import DataError, UserError
from pipeline.common.text import code
from pipeline.exchange.exports.card import card, origin, table
from pipeline.look.show.subject import store_around
from pipeline.store import Artifact

KEY = ["group_id", "sample_index"]
ROWS = ("rollouts", "revisions")
"""Kinds of artifacts with completions. Those of revisions are the own ones, and beside each what is preferred to it."""
USABLE = pl.col("status") == "ok"
"""Cut completions are left out: a trainer would put an end behind them that the model never drew."""
READ = [*KEY, "prompt_text", "completion_text", "reward", "status"]
SFT = {
    "prompt": "The text given to the model.",
    "completion": "What it answered.",
    "reward": "Reward of the completion.",
    "group_id": "As in the rollouts.",
    "sample_index": "As in the rollouts.",
}
PREFERENCE = {
    "prompt": "The text given to the model.",
    "chosen": "The completion with the higher reward.",
    "rejected": "The other.",
    "score_chosen": "Reward of the chosen one.",
    "score_rejected": "Reward of the other.",
    "group_id": "As in the rollouts.",
    "chosen_index": "sample_index of the chosen one in the rollouts.",
    "rejected_index": "sample_index of the other.",
}


@dataclass(frozen=True)
class ExportSource:
    """What is exported: rollouts, all of them or those that shaping kept, and the pairs that it made."""

    artifact: Artifact
    rollouts: Artifact
    shaped: Artifact | None

    @classmethod
    def of(cls, artifact: Artifact, *, masked: bool = False) -> ExportSource:
        """
        Args:
            masked: the form says which tokens the policy drew, so it holds episodes too.

        Raises:
            UserError: neither rollouts nor a shaped table, or episodes, whose text is not the model's alone.
            IntegrityError: the rollouts of a shaped table are not in its store.
        """
        if artifact.kind not in (*ROWS, "shaped"):
            raise UserError(f"{artifact.url}: a {artifact.kind} artifact; name rollouts, or a shaped table of them")
        shaped = artifact if artifact.kind == "shaped" else None
        rollouts = store_around(artifact).get(artifact.parent("rollouts")) if shaped else artifact
        if rollouts.tables("turns") and not masked:
            raise UserError(
                f"{rollouts.url}: episodes, of whose text a trainer would learn what an environment said. Export them with "
                "--to dataset, trl-tokens, verl, openai, verifiers or atropos, which have the mask"
            )
        return cls(artifact, rollouts, shaped)

    def tables(self, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        """Rows of the rollouts, those that shaping kept if it did, file by file."""
        shaped = self.shaped.tables("shaped") if self.shaped else []
        for number, path in enumerate(self.rollouts.tables("rollouts")):
            rows = pl.read_parquet(path, columns=columns, glob=False)
            if shaped:
                kept = pl.read_parquet(shaped[number], glob=False).filter("keep")
                rows = rows.join(kept, on=KEY, how="semi", maintain_order="left")
            yield rows

    def files(self) -> Iterator[tuple[pl.DataFrame, pl.DataFrame | None]]:
        """Rows of the rollouts, those that shaping kept if it did, file by file; and the pairs that it made of them."""
        pairs = self.shaped.tables("pairs") if self.shaped else []
        for number, rows in enumerate(self.tables(READ)):
            yield rows, pl.read_parquet(pairs[number], glob=False) if pairs else None


def write_sft(source: ExportSource, directory: Path, min_reward: float | None) -> int:
    """Returns the number of rows.

    Raises:
        DataError: none is left.
    """

    def rows() -> Iterator[pl.DataFrame]:
        for frame, _ in source.files():
            chosen = frame.filter(USABLE, pl.lit(True) if min_reward is None else pl.col("reward") >= min_reward)
            yield chosen.select(
                prompt="prompt_text",
                completion="completion_text",
                reward="reward",
                group_id="group_id",
                sample_index="sample_index",
            )

    return _write(source, directory, rows(), "SFT", SFT, min_reward)


def write_preference(source: ExportSource, directory: Path, min_reward: float | None, pairing: RewardPairs) -> int:
    """Returns the number of pairs.

    Args:
        min_reward: least reward of the chosen completion.
        pairing: used where shaping made no pairs.

    Raises:
        DataError: none is left.
    """

    def rows() -> Iterator[pl.DataFrame]:
        for frame, made in source.files():
            pairs = pairing.pairs(frame.filter(USABLE)) if made is None else made
            ends = frame.select("group_id", "sample_index", "completion_text", "reward")
            chosen = ends.rename({"sample_index": "chosen_index", "completion_text": "chosen", "reward": "score_chosen"})
            rejected = ends.rename({"sample_index": "rejected_index", "completion_text": "rejected", "reward": "score_rejected"})
            prompts = frame.select("group_id", prompt="prompt_text").unique("group_id")
            joined = pairs.filter(pl.col("preference") > 0.5).join(prompts, on="group_id", maintain_order="left")
            joined = joined.join(chosen, on=["group_id", "chosen_index"], maintain_order="left")
            joined = joined.join(rejected, on=["group_id", "rejected_index"], maintain_order="left")
            limit = pl.lit(True) if min_reward is None else pl.col("score_chosen") >= min_reward
            yield joined.filter(limit).select(*PREFERENCE)

    return _write(source, directory, rows(), "preference", PREFERENCE, min_reward)


def _write(
    source: ExportSource,
    directory: Path,
    frames: Iterator[pl.DataFrame],
    form: str,
    columns: dict[str, str],
    min_reward: float | None,
) -> int:
    (directory / "data").mkdir()
    count = number = 0
    for frame in frames:
        if len(frame):
            frame.write_parquet(directory / "data" / f"train-{number:05d}.parquet", compression="zstd")
            count, number = count + len(frame), number + 1
    if not count:
        why = "no completion has that reward" if min_reward is not None else "no completion is whole and graded"
        raise DataError(
            f"{source.artifact.url}: nothing to export: {why}{', or no group has two different ones' * (form != 'SFT')}"
        )
    front = {
        "pretty_name": f"{form} data from {source.artifact.id[:12]}",
        "task_categories": ["text-generation"],
        "tags": ["rollbook", "trl", form.lower()],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    parts = [
        f"# {form} data from {source.artifact.kind} {source.artifact.id[:12]}",
        f"{count:,} rows in the form that TRL calls {'prompt-completion' if form == 'SFT' else form}, as text."
        + (f" Least reward: {min_reward:g}." if min_reward is not None else ""),
        '```python\nfrom datasets import load_dataset\n\ndata = load_dataset("DIR", split="train")\n```',
        table(["column", "meaning"], [[code(name), text] for name, text in columns.items()]),
        "## Where it comes from\n\n" + origin(source.artifact),
        *([origin(source.rollouts)] if source.shaped else []),
    ]
    (directory / "README.md").write_text(card(front, parts), encoding="utf-8")
    return count
