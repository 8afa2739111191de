"""The processes that train together: one alone, or the ranks of a torch.distributed group.

A rank is told who it is by the variables that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
whether torchrun started it or `pipeline.train.launch` did.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pipeline.common.errors import UserError

PATIENCE = timedelta(hours=12)
"""How long a rank waits for another: one may lay out a large snapshot meanwhile. A rank that dies is noticed at once."""


@dataclass(frozen=True)
class Team:
    """Who trains. Every method that exchanges something must be called by all ranks, in the same order."""

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    """The ranks in a row; None for one process."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Values of all ranks, one after the other in order of ranks, on the CPU. Ranks may have different numbers of them."""
        values = values.detach().cpu()
        if self.mesh is None:
            return values
        kind, values = values.dtype, values.to(torch.uint8) if values.dtype == torch.bool else values
        lengths = [int(length) for length in self._gather_equal(torch.tensor([len(values)]))]
        padded = values.new_zeros(max(lengths))
        padded[: len(values)] = values
        pieces = self._gather_equal(padded)
        return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)]).to(kind)

    def _gather_equal(self, values: Tensor) -> list[Tensor]:
        pieces = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(pieces, values)
        return pieces

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in order of ranks."""
        if self.mesh is None:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode() + b"\n"), dtype=torch.uint8)
        return [json.loads(line) for line in bytes(self.gather(data).tolist()).splitlines()]

    def sum(self, value: float) -> float:
        """Sum over ranks."""
        return float(self.gather(torch.tensor([value], dtype=torch.float64)).sum())

    def wait_for_all(self) -> None:
        """Return once every rank has come here."""
        if self.mesh is not None:
            self._gather_equal(torch.zeros(1))

    def leave(self) -> None:
        """End the exchange."""
        if self.mesh is not None:
            dist.destroy_process_group()


def is_rank() -> bool:
    """Whether something that starts ranks has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_of_this() -> int:
    """This process's rank, before it has joined the others."""
    return int(os.environ["RANK"]) if is_rank() else 0


def join() -> Team:
    """The team that the environment names; one process alone without it.

    Raises:
        UserError: there are more ranks on this machine than GPUs.
    """
    place = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    if on_gpu and place >= torch.cuda.device_count():
        raise UserError(
            f"rank {place} of this machine has no GPU: {torch.cuda.device_count()} are visible. Set train.processes to that"
        )
    device = torch.device("cuda", place) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not is_rank() or os.environ["WORLD_SIZE"] == "1":
        return Team(device=device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    return Team(rank=dist.get_rank(), size=dist.get_world_size(), device=device, mesh=mesh)


def alone() -> Team:
    """This process, on a GPU if there is one."""
    return Team(device=torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
