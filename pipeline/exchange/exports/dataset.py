"""A rollouts artifact as a Hugging Face dataset: its own Parquet files and a card. `datasets.load_dataset(DIR)` opens it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from pipeline.common.errors import DataError
from pipeline.common.text import code
from pipeline.exchange.exports.card import card, columns, figures, origin
from pipeline.store import Artifact
from pipeline.store.parquet import write_parquet
from schemas import TABLES, Rollouts

FOLDER = "data"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
BESIDE = ("origins", "remarks", "turns", "revisions")
"""Tables that come along as further configurations."""


def write_dataset(artifact: Artifact, directory: Path, min_reward: float | None) -> int:
    """Write the tables and the card. Returns the number of completions.

    Without `min_reward` files are copied byte by byte, so that their hashes are those of the artifact's manifest.

    Raises:
        DataError: none is left; `datasets` opens no empty one.
    """
    (directory / FOLDER).mkdir()
    kept = [_write(path, directory / FOLDER / path.name, min_reward) for path in artifact.tables("rollouts")]
    if not sum(kept):
        raise DataError(f"{artifact.url}: nothing to export: no completion has that reward")
    beside = [name for name in BESIDE if min_reward is None and artifact.tables(name)]
    for name in beside:
        for path in artifact.tables(name):
            shutil.copyfile(path, directory / FOLDER / path.name)
    text = card(_front(sum(kept), artifact, beside), _parts(artifact, sum(kept), beside, min_reward))
    (directory / "README.md").write_text(text, encoding="utf-8")
    return sum(kept)


def _write(path: Path, target: Path, min_reward: float | None) -> int:
    if min_reward is None:
        shutil.copyfile(path, target)
        return int(pq.read_metadata(path).num_rows)
    rows = pl.read_parquet(path, glob=False).filter(pl.col("reward") >= min_reward)
    if len(rows):  # `datasets` reads no file without rows
        write_parquet(target, rows, Rollouts)
    return len(rows)


def _front(completions: int, artifact: Artifact, beside: list[str]) -> dict[str, Any]:
    patterns = {"rollouts": "part-*.parquet", **{name: f"{name}-*.parquet" for name in BESIDE}}
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{FOLDER}/{_pattern(artifact, name, patterns[name])}"}]}
        for name in ("rollouts", *beside)
    ]
    configs[0]["default"] = True
    return {
        "pretty_name": f"Rollouts {artifact.id[:12]}",
        "task_categories": ["text-generation"],
        "tags": ["rollbook", "reinforcement-learning", "rollouts"],
        "size_categories": [next((name for limit, name in SIZES if completions < limit), "n>10M")],
        "configs": configs,
    }


def _pattern(artifact: Artifact, name: str, usual: str) -> str:
    """The files of a table, by a pattern that fits no other table's."""
    starts = {path.name.split("-")[0] for path in artifact.tables(name)}
    return f"{starts.pop()}-*.parquet" if len(starts) == 1 else usual


def _parts(artifact: Artifact, completions: int, beside: list[str], min_reward: float | None) -> list[str]:
    summary, recipe = artifact.summary, artifact.recipe
    of = f" of {summary['completions']:,}" if min_reward is not None else ""
    cut = f" Only completions with a reward of at least {min_reward:g} are here." if min_reward is not None else ""
    sampling = recipe.get("sampling")
    drawn = f"Drawn with {code(sampling)}." if sampling else "How they were drawn stands in each row; null is unknown."
    also = [f"Configuration {code(name)}:\n\n{columns(TABLES[name])}" for name in beside]
    return [
        f"# Rollouts {artifact.id[:12]}",
        f"{completions:,}{of} completions of a language model, token by token, with their rewards.{cut}",
        drawn + " Rows that failed are kept with a status and an error.",
        '```python\nfrom datasets import load_dataset\n\nrollouts = load_dataset("DIR", split="train")\n```',
        "## Figures\n\n" + figures(artifact),
        "## Where it comes from\n\n" + origin(artifact),
        "## Columns\n\n" + columns(Rollouts) + "\n\nColumns that start with `reward_` are the parts of the reward.",
        *also,
    ]
