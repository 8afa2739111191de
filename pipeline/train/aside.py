"""AdamW whose moments lie where there is room: of a GPU's training in the host's memory, of a CPU's in a file that is mapped.

A weight's moments come to its device for its own update and go back, so those of one weight at most are there. The update is
PyTorch's own, weight by weight, so the weights are the same to the byte. Of a mapped file the system keeps as much in memory
as is free, and writes out the rest.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.common.errors import writing

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamWAside(torch.optim.AdamW):
    """AdamW that keeps its moments beside the device. With several ranks, each keeps those of its own rows."""

    def __init__(self, masters: Iterable[nn.Parameter], directory: Path, **settings: Any) -> None:
        """
        Args:
            directory: for files, which are gone with this process.
        """
        super().__init__([{"params": [master]} for master in masters], fused=True, **settings)
        self._directory = directory
        self._away: dict[nn.Parameter, dict[str, Tensor]] = {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        groups = self.param_groups
        for group in groups:
            (master,) = group["params"]
            if master.grad is None:
                continue
            self.state[master] = moments_of(self, master)
            self.param_groups = [group]
            try:
                super().step()
            finally:
                self.param_groups = groups
            self.lay_aside(master)

    def brought(self, master: nn.Parameter) -> dict[str, Tensor]:
        """All that is known of a weight, on its device."""
        away = self._away.get(master, {})
        return {**self.state[master], **{name: _like(master, rows.to(master.device)) for name, rows in away.items()}}

    def lay_aside(self, master: nn.Parameter) -> None:
        """Put a weight's moments where they stay.

        Raises:
            StageFailed: the disk is full.
        """
        state, away = self.state[master], self._away.setdefault(master, {})
        for name in MOMENTS:
            if name in state:
                rows = _own(state.pop(name))
                if name not in away:
                    away[name] = self._room(rows)
                if away[name].data_ptr() != rows.data_ptr():
                    away[name].copy_(rows)

    def forget(self) -> None:
        """Let go of all that is known."""
        self.state.clear()
        self._away.clear()

    def _room(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu":
            return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        if not rows.numel():
            return torch.empty_like(rows)
        with writing(self._directory), tempfile.NamedTemporaryFile(dir=self._directory) as file:
            os.posix_fallocate(
                file.fileno(), 0, rows.nbytes
            )  # whoever writes to a hole of a mapped file on a full disk is killed
            return torch.from_file(file.name, shared=True, size=rows.numel(), dtype=rows.dtype).view(rows.shape)


def moments_of(optimizer: torch.optim.Optimizer, master: nn.Parameter) -> dict[str, Tensor]:
    """What an optimizer knows of a weight: moments and the step count."""
    return optimizer.brought(master) if isinstance(optimizer, AdamWAside) else optimizer.state[master]


def give(optimizer: torch.optim.Optimizer, master: nn.Parameter, known: dict[str, Tensor]) -> None:
    """Let an optimizer know of a weight what another knew."""
    optimizer.state[master].update(known)
    if isinstance(optimizer, AdamWAside):
        optimizer.lay_aside(master)


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer forget all that it knows."""
    optimizer.forget() if isinstance(optimizer, AdamWAside) else optimizer.state.clear()


def _own(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _like(master: nn.Parameter, rows: Tensor) -> Tensor:
    if not isinstance(master, DTensor):
        return rows
    return DTensor.from_local(
        rows, master.device_mesh, master.placements, run_check=False, shape=master.shape, stride=master.stride()
    )
