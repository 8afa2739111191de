"""Logprobs of a sample of completions, computed again with the trainer's own kernels under the checkpoint that is named."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.generate.mixture.order import MIXTURE, OTHER
from pipeline.look.audit.deep.rerun import CannotRerun
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from schemas import Rollouts, Scores

if TYPE_CHECKING:
    from pipeline.train.model import Policy

LIMITS: Mapping[str, tuple[float, float]] = {"float32": (1e-4, 1e-2), "bfloat16": (0.05, 2.0)}
"""Largest mean and largest single |stored - recomputed|, nats per token, by the number format of engine and trainer.

Measured between vLLM and transformers on a CPU: at most 2.4e-5 in float32; mean 0.03 and at most 0.2 in bfloat16.
"""
TOKENS_AT_ONCE = 16384
EDGES = tuple(range(-9, 2))
"""Powers of ten between which differences are counted."""
REMEDY = "The logprobs are not those of this checkpoint: restore both from a copy, or score the completions anew."
KEY = ["group_id", "sample_index"]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """|stored - recomputed| of an artifact's sampled logprobs, nats per token."""

    artifact: str
    checkpoint: str
    what: str
    """behavior_logprobs, or the logprobs of a scores table."""
    dtype: str
    completions: int
    tokens: int
    mean: float
    quantiles: Mapping[str, float]
    """Median, 90 %, 99 % and the largest."""
    counts: tuple[int, ...]
    """Tokens by size: 0, then up to each of `EDGES` as a power of ten, then above."""
    limit_mean: float
    limit_largest: float


def check_logprobs(held: Held, world: World, scratch: Path, samples: int) -> Distribution | None:
    """Compare an artifact's stored logprobs with recomputed ones and report those beyond the limit.

    Args:
        scratch: directory for the sampled rows.
        samples: completions to take, whole groups; 0 for all.

    Returns:
        None if there is nothing that can be compared: no logprobs, a support that was cut, or parents that are not here whole.

    Raises:
        CannotRerun: the trainer does not compute this model's logprobs on such sequences.
    """
    rollouts = held if held.kind == "rollouts" else world.shelf.parent(held, "rollouts")
    checkpoint = world.shelf.parent(held, "policy" if held.kind == "rollouts" else "checkpoint")
    other = world.shelf.parent(held, OTHER) if MIXTURE in held.recipe else checkpoint
    if not (rollouts and checkpoint and other) or not all(world.intact(one) for one in (held, rollouts, checkpoint, other)):
        return None
    rows = _sampled(rollouts, held, world, samples)
    dtype = str(held.recipe.get("dtype", "float32"))
    if rows is None or rows.is_empty() or dtype not in LIMITS:
        return None
    if other is checkpoint:
        again = _again(rows, checkpoint, dtype, scratch / f"{held.folder.name}.parquet")
    else:
        from pipeline.generate.mixture.reference import mixture_logprobs

        share, places = float(held.recipe[MIXTURE]["share"]), [Path(str(one.folder.place.path)) for one in (checkpoint, other)]
        again = mixture_logprobs(rows, places[0], places[1], share, dtype)
    both = rows.join(again, on=KEY, how="inner", maintain_order="left")
    differences = [_difference(row) for row in both.iter_rows(named=True)]
    found = _distribution(held, checkpoint, dtype, differences)
    _report(held, world, found, both, differences)
    return found


def _sampled(rollouts: Held, held: Held, world: World, samples: int) -> pl.DataFrame | None:
    """Completions of some groups, drawn by a hash of their names, with the stored logprobs as `stored`."""
    scalars = {name: pl.col(name) for name in KEY}
    usable = pl.col("completion_token_ids").list.len() > 0
    if held is rollouts:
        whole = (pl.col("top_p") == 1) & (pl.col("top_k") == 0) & (pl.col("min_p") == 0)
        usable &= pl.col("behavior_logprobs").is_not_null() & whole & (pl.col("logprobs_mode") == "processed_logprobs")
    index = world.columns(rollouts, Rollouts, {**scalars, "usable": usable})
    if index is None:
        return None
    groups = index.filter("usable").group_by("group_id", maintain_order=True).agg(pl.col("file").first(), size=pl.len())
    order = sorted(groups.iter_rows(named=True), key=lambda row: hashlib.sha256(row["group_id"].encode()).digest())
    chosen, taken = [], 0
    for group in order:
        if samples and taken >= samples:
            break
        chosen.append(group["group_id"])
        taken += group["size"]
    wanted = pl.col("group_id").is_in(pl.Series(chosen, dtype=pl.String).implode())
    files = sorted({row["file"] for row in order if row["group_id"] in set(chosen)})
    parts = [_rows_of(rollouts, held, number, wanted) for number in files]
    keys = index.filter("usable").select(KEY)
    return pl.concat(parts).join(keys, on=KEY, how="semi", maintain_order="left") if parts else None


def _rows_of(rollouts: Held, held: Held, number: int, wanted: pl.Expr) -> pl.DataFrame:
    path = rollouts.folder.local(rollouts.tables("rollouts")[number])
    rows = pl.scan_parquet(path, glob=False).with_row_index("row").filter(wanted).collect()
    rows = rows.with_columns(file=pl.lit(number, pl.Int32))
    if held is rollouts:
        return rows.with_columns(stored="behavior_logprobs")
    tables = held.tables(Scores.title())
    scored = pl.scan_parquet(held.folder.local(tables[number]), glob=False).select(*KEY, stored="logprobs").filter(wanted)
    return rows.join(scored.collect(), on=KEY, how="inner", maintain_order="left")


def _again(rows: pl.DataFrame, checkpoint: Held, dtype: str, path: Path) -> pl.DataFrame:
    """group_id, sample_index and recomputed logprobs of rows."""
    from pipeline.score.stage import score_file
    from pipeline.train.check import make_ready
    from pipeline.train.rows import groups_of, longest_of

    rows.select(*Rollouts.columns()).write_parquet(path)
    policy = _policy(str(checkpoint.folder.place.path), dtype)
    try:
        make_ready(policy, next(groups_of(path)), longest_of([path]), "auto", notify=lambda note: None)
    except UserError as error:
        raise CannotRerun(str(error)) from None
    return score_file(policy, path, TOKENS_AT_ONCE)


@cache
def _policy(path: str, dtype: str) -> Policy:
    from pipeline.train.model import Policy

    return Policy(Path(path), dtype, trust_remote_code=False, trains=False)


def _difference(row: dict[str, Any]) -> NDArray[np.float64]:
    """|stored - recomputed| of the tokens that the policy drew; infinite where they do not align."""
    stored, again = np.asarray(row["stored"], np.float64), np.asarray(row["logprobs"], np.float64)
    if len(stored) != len(again):
        return np.array([math.inf])
    drawn = np.ones(len(stored), bool) if row["action_mask"] is None else np.asarray(row["action_mask"], bool)
    difference: NDArray[np.float64] = np.abs(stored - again)[drawn]
    return difference


def _distribution(held: Held, checkpoint: Held, dtype: str, differences: list[NDArray[np.float64]]) -> Distribution:
    values = np.concatenate(differences) if differences else np.zeros(0)
    edges = np.array([0.0, *(10.0**edge for edge in EDGES), math.inf])
    places = np.searchsorted(edges, values, side="left")
    quantiles = {name: float(np.quantile(values, q)) if len(values) else 0.0 for name, q in _QUANTILES.items()}
    mean, largest = LIMITS[dtype]
    return Distribution(
        artifact=held.name,
        checkpoint=checkpoint.name,
        what="behavior_logprobs" if held.kind == "rollouts" else "logprobs",
        dtype=dtype,
        completions=len(differences),
        tokens=len(values),
        mean=float(values.mean()) if len(values) else 0.0,
        quantiles=quantiles,
        counts=tuple(np.bincount(places, minlength=len(edges)).tolist()),
        limit_mean=mean,
        limit_largest=largest,
    )


_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}


def _report(held: Held, world: World, found: Distribution, rows: pl.DataFrame, differences: list[NDArray[np.float64]]) -> None:
    files = held.tables("rollouts" if held.kind == "rollouts" else Scores.title())
    for row, difference in zip(rows.select("file", "row").iter_rows(), differences, strict=True):
        if len(difference) and not difference.max() <= found.limit_largest:
            held.spot(world.ledger, files[row[0]].path).error(
                "derivation",
                "logprobs",
                expected=f"logprobs within {found.limit_largest:g} nats of those of {found.checkpoint}",
                found=f"one that is off by {difference.max():.4g} nats",
                remedy=REMEDY,
                row=row[1] if held.kind == "rollouts" else None,
                column=found.what,
            )
    if not found.mean <= found.limit_mean:
        held.spot(world.ledger).error(
            "derivation",
            "logprobs",
            expected=f"a mean difference of at most {found.limit_mean:g} nats per token ({found.dtype})",
            found=f"{found.mean:.4g} nats over {found.tokens} tokens",
            remedy=REMEDY,
            column=found.what,
        )
