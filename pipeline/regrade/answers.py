"""Rollouts whose completions are stored with other rewards are graded, not generated anew: whoever answers, this goes before."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.generate.siblings import find_sibling
from pipeline.run.order import Answerer, Job, Missing, Order
from pipeline.store import Artifact, Store

Stored = Sequence[tuple[Job, Artifact]]
"""Jobs, each with the rollouts that hold its completions."""


class Regrading:
    """Has stored completions graded by the graders that an order for rollouts names, and what is not stored generated.

    Args:
        inner: answers both.
        store: where siblings are looked for.
    """

    def __init__(self, inner: Answerer, store: Store) -> None:
        self._inner, self._store = inner, store

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        if order.stage == "generate":
            missing = [job for job in order.jobs if self._store.find(job.request) is None]
            stored = [(job, sibling) for job in missing if (sibling := find_sibling(self._store, job.request))]
            if stored:
                self._grade(order, stored, all_of_them=len(stored) == len(missing))
        return self._inner.answer(order)

    def _grade(self, order: Order, stored: Stored, *, all_of_them: bool) -> None:
        try:
            self._inner.answer(regrade_order(order, stored))
        except Missing:
            if all_of_them:
                raise


def regrade_order(order: Order, stored: Stored) -> Order:
    """What an order for rollouts asks for, made from stored completions that differ in their graders alone."""
    jobs = [Job(request=job.request, told={**job.told, "rollouts": str(rollouts.path)}) for job, rollouts in stored]
    title = order.title.replace("generate", "grade")
    return Order(title=title, module="pipeline.regrade", jobs=tuple(jobs), told={"reward": order.told["reward"]})
