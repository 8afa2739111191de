"""Machines beyond this one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.base import Model


class ClusterConfig(Model):
    ray: str = Field(min_length=1)
    """Address of the head of a Ray cluster, such as 10.0.0.5:6379. auto: the cluster that this machine is part of."""
    engines: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Engines over all nodes. auto: as many as the GPUs hold; without GPUs one a node."""
    cpus: int = Field(default=1, ge=1)
    """Cores that each engine takes; without a GPU its threads too."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other resources of Ray's that each engine takes, such as {big_memory: 1}."""
    place_seconds: float = Field(default=120.0, gt=0)
    """How long engines may find no room on any node before the stage gives up."""

    @field_validator("ray")
    @classmethod
    def _an_address(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        if address != "auto" and ("//" in address or not host or not port.isdigit()):
            raise ValueError("expected auto, or HOST:PORT of the head's own port (not that of Ray's client, ray://)")
        return address
