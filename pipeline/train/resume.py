"""Resume points: everything that training has become after a step, on disk, without pickle.

    step-000050/model.safetensors   fp32 master weights
    step-000050/adam.safetensors    AdamW's moments
    step-000050/metrics.parquet, timing.parquet

The order of groups follows from the seed and the epoch, and nothing in training draws random numbers, so the step number
is the position.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.artifacts.work import write_table
from schemas import Metrics, Timing

METRIC_TYPES = {name: column.dtype for name, column in Metrics.columns().items()}
TIMING_TYPES = {name: column.dtype for name, column in Timing.columns().items()}


@dataclass
class Records:
    """Rows of the metrics and timing tables so far."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)

    def metrics_frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.metrics, schema=METRIC_TYPES)

    def timing_frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.timing, schema=TIMING_TYPES)


def save(
    scratch: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, records: Records
) -> None:
    """Write the state after `step` steps, then remove the older one."""
    final = scratch / f"step-{step:08d}"
    building = scratch / f".building-{step:08d}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    moments = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            moments[f"{key}|{name}"] = value.detach().cpu().contiguous()
    save_file(
        {name: parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}, building / "model.safetensors"
    )
    save_file(moments, building / "adam.safetensors")
    write_table(building / "metrics.parquet", records.metrics_frame(), Metrics)
    write_table(building / "timing.parquet", records.timing_frame(), Timing)
    building.rename(final)
    for older in scratch.glob("step-*"):
        if older != final:
            shutil.rmtree(older)


def load(scratch: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> tuple[int, Records]:
    """The newest resume point, put into the model and the optimizer. (0, nothing) if there is none."""
    points = sorted(scratch.glob("step-*"))
    if not points:
        return 0, Records()
    point = points[-1]
    weights = load_file(point / "model.safetensors")
    moments = load_file(point / "adam.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            state = {key.partition("|")[0]: value for key, value in moments.items() if key.partition("|")[2] == name}
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    records = Records(pl.read_parquet(point / "metrics.parquet").to_dicts(), pl.read_parquet(point / "timing.parquet").to_dicts())
    return int(point.name.removeprefix("step-")), records
