"""The caller's end of engines on a cluster: each as if its process were on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.common import errors
from pipeline.common.errors import StageCrashed, StageFailed, UserError
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig
from pipeline.generate.cluster.nodes import Takes, connect, engines_on, wanted_by
from pipeline.generate.cluster.relay import ADDRESSES, GROUPS, Relay
from pipeline.generate.engine import engine_environment
from pipeline.generate.engines import hands
from pipeline.run.child import Event
from pipeline.store.cache import store_of
from pipeline.store.store import load_artifact

STOP_SECONDS = 10.0
"""How long an engine may take to end after it was asked to."""


class Far:
    """Starts engines wherever the cluster has room for them. One that waits for room joins the others when there is some.

    Raises:
        UserError: no cluster at the address.
    """

    def __init__(self, config: EngineConfig, cluster: ClusterConfig) -> None:
        nodes = connect(cluster)
        self._cluster = cluster
        self._wanted = wanted_by(config, cluster, nodes)
        self._count = engines_on(nodes, self._wanted) if cluster.engines == "auto" else cluster.engines

    @property
    def count(self) -> int:
        return self._count

    @property
    def needed(self) -> int:
        return 1

    def process(self, number: int) -> FarProcess:
        return FarProcess(self._wanted, self._cluster.place_seconds)


class FarProcess:
    """An engine's process somewhere on the cluster, behind the actor that passes on what it says."""

    def __init__(self, wanted: Takes, place_seconds: float) -> None:
        self._wanted, self._patience = wanted, place_seconds
        environment = engine_environment() | ({} if wanted.gpus else {"OMP_NUM_THREADS": str(wanted.cpus)})
        actor: Any = ray.remote(concurrency_groups=GROUPS)(Relay)
        options = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus, "resources": dict(wanted.others)}
        self._actor = actor.options(**options, max_restarts=0, max_task_retries=0).remote(hands.MODULE, environment)
        self._is_placed = False
        self._lost: RayError | None = None

    def tell(self, message: Event) -> None:
        """Have it passed on. Where it writes its log is its node's affair."""
        if "log" not in message:
            self._call("tell", "tell", _addressed(message))

    def _call(self, method: str, group: str, *arguments: Any) -> Any:
        """Have a thread of the actor do something; what it returns is there once that is done."""
        return getattr(self._actor, method).options(concurrency_group=group).remote(*arguments)

    def logs_to(self, log: Path) -> None:
        """It has a log of its own, on its node."""

    def events(self) -> Iterator[Event]:
        """What it says, to its end or that of its node; before that, that it waits for room."""
        try:
            yield from self._placement()
            ended = False
            while not ended:
                heard, ended = ray.get(self._call("hear", "hear"))
                yield from heard
        except RayError as error:
            self._lost = error

    def _placement(self) -> Iterator[Event]:
        ready = self._actor.__ray_ready__.remote()
        while not ray.wait([ready], timeout=self._patience)[0]:
            message = f"no node of the cluster has had room for an engine for {self._patience:g} s. {self._wanted.described()}"
            yield {"event": "waits_for_room", "message": message}
        ray.get(ready)
        self._is_placed = True

    def error(self, event: Event) -> UserError:
        kind: type[UserError] = getattr(errors, event["kind"], StageFailed)
        return kind(event["message"])

    def crash(self) -> StageFailed:
        """What to say of one that ended without a last word, or with its node."""
        if self._lost is None:
            with contextlib.suppress(RayError):
                node, words = ray.get(self._call("last_words", "tell"), timeout=STOP_SECONDS)
                return StageCrashed(f"{words}\n  | on {node}")
        why = type(self._lost).__name__ if self._lost else "it does not answer"
        return StageCrashed(f"{hands.MODULE} was lost with its node or its actor ({why}). What was finished is kept")

    def stop(self) -> None:
        """Make sure that it is gone. What it said can still be read."""
        with contextlib.suppress(RayError):
            if self._is_placed and self._lost is None:
                ray.get(self._call("stop", "tell"), timeout=STOP_SECONDS)
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self._actor)

    def end(self) -> None:
        self.stop()


def _addressed(message: Event) -> Event:
    """A message in which checkpoints of a bucket are named by their addresses: their directories here are this machine's own."""
    load = message.get("load")
    if not isinstance(load, dict):
        return message
    named = {"model": load["model"], "other": (load.get("mixture") or {}).get("other")}
    cached = {name: Path(place) for name, place in named.items() if place and store_of(Path(place).parent.parent)}
    return {"load": {**load, ADDRESSES: {name: load_artifact(place).url for name, place in cached.items()}}}
