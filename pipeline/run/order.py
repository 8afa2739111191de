"""A stage's work as a value: an order says all that decides and describes it, and whoever answers it has it done.

Pure functions of a config and of parents make orders; they lie in `order.py` of each stage's room. The recipe of a request holds
what decides the result and nothing else: no paths, none of the settings that say how the work is done and change the result by
rounding at most (processes, micro-batches, attention: `WORK_SETTINGS`), and none that only say when to refuse (`GUARDS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.store import Artifact, Request

STAGES = {name: f"{name}/1" for name in ("prompts", "import", "generate", "shape", "mix", "score", "train", "evaluate", "revise")}
STAGES |= {name: f"{name}/2" for name in ("prompts", "shape")} | {name: f"{name}/4" for name in ("score", "train")}
"""Stage and version. The version is part of every key: raise it when a stage's result changes for the same recipe."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artifact that an order asks for."""

    request: Request
    """Kind, parents and recipe: what the artifact's key is made of."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What the stage is told of it beside: where parents lie, settings of how the work is done. What JSON can hold."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One piece of work: artifacts that are made in the same breath, by one stage.

    >>> order = Order(title="shape 2", module="pipeline.shape", jobs=(Job(request=Request("shaped", "shape/2", {}, ())),))
    >>> order.stage, [request.kind for request in order.requests]
    ('shape', ['shaped'])
    """

    title: str
    """For people, such as "generate 2"."""
    module: str
    """The stage's module, which `python -m` starts; with `here`, one with a function `work`."""
    jobs: tuple[Job, ...]
    """At least one."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What the stage is told once, for all jobs."""
    here: bool = False
    """Whether the work is small enough to be done by the process that asks."""
    then: str | None = None
    """Module of the stage that will be asked next: its libraries may be loaded while this work goes on."""

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(job.request for job in self.jobs)

    @property
    def stage(self) -> str:
        """The stage's name, such as "generate"."""
        return self.requests[0].stage.partition("/")[0]

    def spec(self, jobs: Sequence[Job] | None = None) -> dict[str, Any]:
        """What the stage's process is given for some of the jobs (all by default). The store is still to be named."""
        wanted = self.jobs if jobs is None else jobs
        return {**self.told, "jobs": [{**job.told, "request": job.request.to_json()} for job in wanted]}


class Answerer(Protocol):
    """The one door to having work done."""

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        """The finished artifacts of an order, one for each of its jobs, in their order.

        Raises:
            Missing: by answerers that only look.
            UserError, StageFailed: the stage's answer to this work.
        """
        ...


class Missing(Exception):
    """Work that is not finished, raised by answerers that only look."""

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.title = title


def only(artifacts: tuple[Artifact, ...]) -> Artifact:
    """The artifact of an order with one job."""
    (artifact,) = artifacts
    return artifact
