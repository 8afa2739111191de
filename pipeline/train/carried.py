"""AdamW's moments that go on from one training to the next: an artifact of its own, kept for the newest checkpoint only.

    optimizer/<key>/rank-0-of-2.safetensors    rows of both moments and the step count that a rank held

Its key follows from the checkpoint's, so whoever has the checkpoint finds it. Any number of ranks can go on from it. Once the
next checkpoint is there, it is deleted. If something needs it after all, as a second run that leaves the first one's way there
does, or a finished run whose later phase is changed, the trainings that led to it are done once more (`made_again`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.run.order import STAGES
from pipeline.run.process import Event, Reporter
from pipeline.store import Artifact, Request, Store
from pipeline.store.store import load_artifact
from pipeline.store.work import Work

DIRECTORY = "optimizer"
"""In a training's scratch directory, where ranks leave their parts."""


def state_request(checkpoint: str) -> Request:
    """The moments that a checkpoint was left with.

    Args:
        checkpoint: its key.
    """
    return Request("optimizer", STAGES["train"], {"checkpoint": checkpoint})


def state_of(policy: Artifact, *stores: Store) -> Artifact:
    """The moments that a training goes on from.

    Raises:
        UserError: they are in none of the stores.
    """
    request = state_request(policy.manifest.content.key)
    for store in stores:
        if found := store.find(request):
            return found
    raise UserError(
        f"{policy.url}: train.optimizer_state is carry, but AdamW's moments of this checkpoint are not in the store. They "
        "are kept for a run's newest checkpoint only, and not if it was trained with optimizer_state: fresh. Only the run whose "
        "training made the checkpoint can make them again. Set train.optimizer_state: fresh"
    )


def made_again(spec: Event, store: Store, scratch: Path, train: Callable[[Event, Reporter], Event], reporter: Reporter) -> None:
    """Have the moments that a training goes on from, if they are gone and the spec says what trainings led to them.

    These trainings are done once more, from the last one before which moments are there or from the first, into a store of
    their own. They end with the checkpoints that are there, or the moments are not of them.

    Args:
        spec: of the training, with `earlier`: those of its run before it.
        scratch: a directory for that store, where a training killed halfway is found again.
        train: does one.

    Raises:
        UserError: other checkpoints come out.
    """
    policy = load_artifact(spec["policy"])
    wanted = state_request(policy.manifest.content.key)
    requests = [Request.from_json(one["request"]) for one in spec.get("earlier", ())]
    keys = [request.key for request in requests]
    if wanted.recipe["checkpoint"] not in keys or store.find(wanted) is not None:
        return
    last = keys.index(wanted.recipe["checkpoint"])
    first = _first(spec["earlier"], requests, last, store)
    count = last + 1 - first
    reporter.note(
        f"AdamW's moments of {policy.url} are gone, since they are kept for a run's newest checkpoint only: "
        f"{'the training that made it is' if count == 1 else f'the {count} trainings that led to it are'} done once more"
    )
    own = Store(scratch, reporter.note)
    for one in spec["earlier"][first : last + 1]:
        made = load_artifact(train({**one, "store": str(scratch), "moments": store.url}, reporter)["artifact"])
    if made.id != policy.id:
        raise UserError(
            f"{policy.url}: AdamW's moments of this checkpoint are gone, and trained again from the same rollouts it came out "
            f"another ({made.id[:16]}): by another machine, or another number of processes. Set train.optimizer_state: fresh"
        )
    found = state_of(made, own)
    keep(store, requests[last], found.path, found.summary["steps"])
    shutil.rmtree(scratch)


def _first(specs: Sequence[Event], requests: Sequence[Request], last: int, store: Store) -> int:
    """Which training to begin with, to come to the moments after the last one."""
    for number in range(last, -1, -1):
        before = load_artifact(specs[number]["policy"]).manifest.content.key
        if requests[number].recipe.get("optimizer_state") != "carry" or store.find(state_request(before)) is not None:
            return number
    return 0


def keep(store: Store, checkpoint: Request, directory: Path, steps: int) -> None:
    """Make the artifact of what all ranks left in a directory.

    Args:
        steps: of the optimizer, over all trainings.
    """
    with store.work(state_request(checkpoint.key)) as work:
        if isinstance(work, Work):
            for path in sorted(directory.glob("rank-*")):
                path.replace(work.path / path.name)
            work.finish({"steps": steps})


def forget(policy: Artifact, store: Store) -> None:
    """Delete the moments of a checkpoint that is not the newest any more, if there are some."""
    request = state_request(policy.manifest.content.key)
    if store.find(request) is not None:
        store.discard(request)
