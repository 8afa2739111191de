"""What is looked at: every rollouts artifact of some runs, stores and imports, with what belongs to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.look.show.completions import COMPLETIONS, SETS, set_of
from pipeline.look.show.subject import Subject, artifacts_in, find_subject, store_around
from pipeline.store import Artifact, Store

KEY_DIGITS = 16
"""Of an id, in addresses."""


@dataclass(frozen=True)
class ViewPart:
    """One rollouts artifact."""

    rollouts: Artifact
    place: str
    """Name of the run or the store that it was found in."""
    set: str
    """rollouts, sampled, greedy or revised; of what nobody made for a run, the beginning of its id."""
    iteration: int | None
    """Of the checkpoint that answered."""
    policy: Artifact | None = None
    """That checkpoint, for its tokenizer."""
    shaped: Artifact | None = None
    scores: Mapping[str, Artifact] = field(default_factory=dict)
    """Logprobs under other checkpoints, by what these are to the training."""
    note: str | None = None
    """Why there are no advantages."""

    @property
    def key(self) -> str:
        """What it is called in addresses."""
        return self.rollouts.id[:KEY_DIGITS]

    @property
    def title(self) -> str:
        return f"{self.place}, {self.set}" + (f", iteration {self.iteration}" if self.iteration is not None else "")


def parts_of(paths: Sequence[str]) -> list[ViewPart]:
    """The completions of some places, each artifact once.

    Raises:
        UserError: there is nothing at one, or no completions in any.
        IntegrityError: a manifest or a run's record is damaged.
    """
    found: dict[str, ViewPart] = {}
    for path in paths:
        subject = find_subject(path)
        for part in _of_run(subject, path) if subject.run is not None else _of_store(subject, path):
            found.setdefault(part.rollouts.id, part)
    if not found:
        raise UserError(f"{', '.join(paths)}: no completions there yet")
    return list(found.values())


def _of_run(subject: Subject, path: str) -> Iterator[ViewPart]:
    assert subject.run is not None
    for step in subject.run.iterations:
        for name in SETS:
            if (rollouts := set_of(step, name)) is None:
                continue
            trained = rollouts is step.trained_on
            yield ViewPart(
                rollouts=rollouts,
                place=_name(path),
                set=name,
                iteration=step.iteration,
                policy=step.policy,
                shaped=step.shaped if trained else None,
                scores=step.scores if trained else {},
            )


def _of_store(subject: Subject, path: str) -> Iterator[ViewPart]:
    """Of a store or one artifact. Of several shaped tables none is taken: they differ."""
    rollouts = [use.artifact for use in subject.uses if use.artifact.kind in COMPLETIONS]
    if not rollouts:
        return
    store = Store(subject.url) if subject.what == "store" else store_around(rollouts[0])
    shaped, scores = (_by_rollouts(store, kind) for kind in ("shaped", "scores"))
    checkpoints = {artifact.id: artifact for artifact in artifacts_in(store, "checkpoint")}
    for one in rollouts:
        policy = next((checkpoints.get(parent.id) for parent in one.manifest.content.parents if parent.role == "policy"), None)
        purpose = "revised" if one.kind == "revisions" else one.recipe.get("purpose")
        made, iteration = shaped[one.id], one.summary.get("iteration")
        several = f"no advantages: {len(made)} shaped tables were made from it" if len(made) > 1 else None
        yield ViewPart(
            rollouts=one,
            place=_name(path),
            set="rollouts" if purpose == "train" else str(purpose or one.id[:8]),
            iteration=iteration if isinstance(iteration, int) else None,
            policy=policy,
            shaped=made[0] if len(made) == 1 else None,
            scores={score.id[:8]: score for score in scores[one.id]},
            note=several,
        )


def _by_rollouts(store: Store, kind: str) -> Mapping[str, list[Artifact]]:
    """Artifacts of a kind, by the id of the rollouts that they were made from."""
    found: dict[str, list[Artifact]] = defaultdict(list)
    for artifact in artifacts_in(store, kind):
        for parent in artifact.manifest.content.parents:
            if parent.kind in COMPLETIONS:
                found[parent.id].append(artifact)
    return found


def _name(path: str) -> str:
    """The end of a path, by which people know it."""
    names = [name for name in Path(path).absolute().parts[-3:] if name not in ("artifacts", "/")]
    return names[-1] if names else path
