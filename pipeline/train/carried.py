"""AdamW's moments that go on from one training to the next: an artifact of its own, kept for the newest checkpoint only.

    optimizer/<key>/rank-0-of-2.safetensors    rows of both moments and the step count that a rank held

Its key follows from the checkpoint's, so whoever has the checkpoint finds it. Any number of ranks can go on from it. Once the
next checkpoint is there, nothing needs it any more and it is deleted.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.run.order import STAGES
from pipeline.store import Artifact, Request, Store
from pipeline.store.work import Work

DIRECTORY = "optimizer"
"""In a training's scratch directory, where ranks leave their parts."""


def state_request(checkpoint: str) -> Request:
    """The moments that a checkpoint was left with.

    Args:
        checkpoint: its key.
    """
    return Request("optimizer", STAGES["train"], {"checkpoint": checkpoint})


def state_of(policy: Artifact, store: Store) -> Artifact:
    """The moments that a training goes on from.

    Raises:
        UserError: they are not there.
    """
    found = store.find(state_request(policy.manifest.content.key))
    if found is None:
        raise UserError(
            f"{policy.url}: train.optimizer_state is carry, but AdamW's moments of this checkpoint are not in the store. They "
            "are kept for a run's newest checkpoint only, and not if it was trained with optimizer_state: fresh. Set "
            "train.optimizer_state: fresh, or delete the checkpoint's directory and run again to make both anew"
        )
    return found


def keep(store: Store, checkpoint: Request, directory: Path, steps: int) -> None:
    """Make the artifact of what all ranks left in a directory.

    Args:
        steps: of the optimizer, over all trainings.
    """
    with store.work(state_request(checkpoint.key)) as work:
        if isinstance(work, Work):
            for path in sorted(directory.iterdir()):
                path.replace(work.path / path.name)
            work.finish({"steps": steps})


def forget(policy: Artifact, store: Store) -> None:
    """Delete the moments of a checkpoint that is not the newest any more, if there are some."""
    request = state_request(policy.manifest.content.key)
    if store.find(request) is not None:
        store.discard(request)
