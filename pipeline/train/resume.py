"""Resume points: everything that training has become after a step, on disk, without pickle.

    step-00000050/rank-0-of-2.safetensors    rows of the fp32 masters and of AdamW's moments that a rank holds
    step-00000050/metrics.parquet, timing.parquet
    step-00000050/ranks.json                 how many ranks worked, from which step on

Every file says which rows it holds, so any number of ranks can go on from what any other number wrote. The order of groups
follows from the seed and the epoch, and nothing in training draws random numbers, so the step number is the position.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.common.errors import writing
from pipeline.store.files import sync, write_text
from pipeline.store.work import write_table
from pipeline.train.aside import give, moments_of
from pipeline.train.team import Team
from pipeline.train.weights import own_rows
from schemas import Metrics, Timing

METRIC_TYPES = {name: column.dtype for name, column in Metrics.columns().items()}
TIMING_TYPES = {name: column.dtype for name, column in Timing.columns().items()}
RANKS = "ranks.json"


@dataclass
class Records:
    """Rows of the metrics and timing tables so far, and who made them."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[dict[str, int]] = field(default_factory=list)
    """{"from_step", "processes"} for every stretch of steps."""

    def metrics_frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.metrics, schema=METRIC_TYPES)

    def timing_frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.timing, schema=TIMING_TYPES)


def save(
    scratch: Path, step: int, masters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, records: Records, team: Team
) -> Path:
    """Write the state after `step` steps, then remove the older one. All ranks must come here.

    Returns:
        The resume point.

    Raises:
        StageFailed: the disk is full.
    """
    final = scratch / f"step-{step:08d}"
    building = scratch / f".building-{step:08d}"
    with writing(final):
        if team.leads:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
        team.wait_for_all()
        _save_own(building / f"rank-{team.rank}-of-{team.size}.safetensors", masters, optimizer, team)
        team.wait_for_all()
        if team.leads:
            write_table(building / "metrics.parquet", records.metrics_frame(), Metrics)
            write_table(building / "timing.parquet", records.timing_frame(), Timing)
            write_text(building / RANKS, json.dumps(records.ranks))
            building.rename(final)
            sync(scratch)
            for older in scratch.glob("step-*"):
                if older != final:
                    shutil.rmtree(older)
        team.wait_for_all()
    return final


def save_moments(directory: Path, masters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, team: Team) -> None:
    """Write what the optimizer knows beside the weights, as `load_moments` reads it. All ranks must come here."""
    with writing(directory):
        if team.leads:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        team.wait_for_all()
        _save_own(directory / f"rank-{team.rank}-of-{team.size}.safetensors", masters, optimizer, team, weights=False)
        team.wait_for_all()


def load_moments(directory: Path, masters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, team: Team) -> None:
    """Give the optimizer what another training's knew in the end."""
    _load_own(directory, masters, optimizer, team)


def _save_own(
    path: Path,
    masters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    team: Team,
    *,
    weights: bool = True,
) -> None:
    tensors: dict[str, Tensor] = {}
    first_rows: dict[str, int] = {}
    for name, master in masters.items():
        for key, value in {**({"weight": master} if weights else {}), **moments_of(optimizer, master)}.items():
            rows, first_rows[f"{key}|{name}"] = own_rows(value, team)
            tensors[f"{key}|{name}"] = rows.cpu().contiguous()
    save_file(tensors, path, {"first_rows": json.dumps(first_rows)})
    sync(path)


def load(scratch: Path, masters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, team: Team) -> tuple[int, Records]:
    """The newest resume point, put into the masters and the optimizer. (0, nothing) if there is none."""
    points = sorted(scratch.glob("step-*"))
    if not points:
        return 0, Records()
    point = points[-1]
    step = int(point.name.removeprefix("step-"))
    _load_own(point, masters, optimizer, team)
    metrics, timing = (pl.read_parquet(point / f"{name}.parquet", glob=False).to_dicts() for name in ("metrics", "timing"))
    return step, Records(metrics, timing, json.loads((point / RANKS).read_text(encoding="utf-8")))


def _load_own(point: Path, masters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, team: Team) -> None:
    pieces: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for path in sorted(point.glob("rank-*.safetensors")):
        file: Any = safe_open(path, framework="pt")
        for key, first in json.loads(file.metadata()["first_rows"]).items():
            kind, _, name = key.partition("|")
            pieces.setdefault(name, {}).setdefault(kind, []).append((first, file.get_slice(key)))
    with torch.no_grad():
        for name, master in masters.items():
            found = pieces.get(name, {})
            if weights := found.pop("weight", None):
                _fill(master, weights, team)
            known = {}
            for kind, parts in found.items():  # none for a weight that never had a gradient
                known[kind] = torch.zeros_like(master) if parts[0][1].get_shape() else torch.zeros((), device=master.device)
                _fill(known[kind], parts, team)
            give(optimizer, master, known)


def _fill(value: Tensor, pieces: list[tuple[int, Any]], team: Team) -> None:
    """Copy the rows that this rank holds from wherever they were written."""
    rows, first = own_rows(value, team)
    if not rows.ndim:
        rows.copy_(pieces[0][1][...])
        return
    for start, piece in pieces:
        low, high = max(first, start), min(first + len(rows), start + piece.get_shape()[0])
        if low < high:
            rows[low - first : high - first] = piece[low - start : high - start].to(rows.device)
