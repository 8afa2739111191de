"""How many groups each replayed rollouts artifact gives to a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.algorithms import Algorithm
from pipeline.algorithms.preference import Preference
from pipeline.common.errors import UserError
from pipeline.config.shape import ReplayConfig
from pipeline.shape.fit import check_rollouts
from pipeline.store import Artifact
from pipeline.store.store import load_artifact


@dataclass(frozen=True)
class ReplaySource:
    """A rollouts artifact to replay."""

    rollouts: Artifact
    weight: float
    """How many groups it gives, relative to the iteration before."""


def sources_of(replay: ReplayConfig, fresh: Artifact, earlier: Sequence[Artifact]) -> list[ReplaySource]:
    """What is replayed: rollouts of earlier iterations, newest first, then those named by path. None comes twice.

    Args:
        fresh: rollouts of the iteration itself.
        earlier: rollouts of all earlier iterations, newest first.

    Raises:
        UserError: a path that holds no rollouts artifact.
    """
    window = earlier[: replay.iterations]
    # A weight of 0, which a power of hundreds comes down to, could not be divided by.
    found = [ReplaySource(rollouts, max(replay.decay**lag, 1e-200)) for lag, rollouts in enumerate(window)]
    found += [ReplaySource(named_rollouts(artifact.path), artifact.weight) for artifact in replay.artifacts]
    distinct: dict[str, ReplaySource] = {}
    for source in found:
        distinct.setdefault(source.rollouts.id, source)
    distinct.pop(fresh.id, None)
    return list(distinct.values())


def named_rollouts(path: str) -> Artifact:
    """The rollouts artifact at a place that `replay.artifacts` names.

    Raises:
        UserError: there is none.
    """
    try:
        artifact = load_artifact(path)
    except UserError as error:
        raise UserError(f"replay.artifacts: {error}") from None
    if artifact.kind != "rollouts":
        raise UserError(
            f"replay.artifacts: {path}: a {artifact.kind} artifact; name a directory in rollouts/ of a run's artifacts"
        )
    return artifact


def check_replay(replay: ReplayConfig, algorithm: Algorithm) -> None:
    """Raise if the rollouts that `replay` names are not there, or an algorithm cannot use them as asked.

    Raises:
        UserError: names the setting or the place, and the remedy.
    """
    if replay.loss_weight != 1 and isinstance(algorithm, Preference):
        raise UserError(
            f"replay.loss_weight: {algorithm.name} compares pairs and has no weights of completions. Leave it at 1; "
            "`replay.share` decides how many are replayed"
        )
    for artifact in replay.artifacts:
        check_rollouts(named_rollouts(artifact.path), algorithm, f"replay.artifacts: {artifact.path}")


def described(replay: ReplayConfig) -> str:
    """What is replayed, in words.

    >>> described(ReplayConfig(iterations=2, share=0.4))
    '40 % of the groups of each training, from 2 earlier iterations'
    """
    share = "all groups" if replay.share is None else f"{100 * replay.share:g} % of the groups of each training"
    plural = "" if replay.iterations == 1 else "s"
    sources = [f"{replay.iterations} earlier iteration{plural}"] if replay.iterations else []
    sources += [artifact.path for artifact in replay.artifacts]
    return f"{share}, from {', '.join(sources)}"


def groups_of_each(replay: ReplayConfig, fresh: int, weights: Sequence[float], available: Sequence[int]) -> list[int]:
    """How many groups each source gives, so that `share` of all are replayed; all of them without a share.

    Args:
        fresh: kept groups of the new rollouts.
        weights: of the sources.
        available: kept groups of each source.
    """
    if replay.share is None:
        return list(available)
    return divided(math.floor(fresh * replay.share / (1 - replay.share) + 0.5), weights, available)


def divided(total: int, weights: Sequence[float], available: Sequence[int]) -> list[int]:
    """Divide a number by weights, none above what is there; what one source lacks, the others give.

    Whole numbers come from the largest remainders, of equal ones the first.

    >>> divided(8, [1.0, 0.5, 0.25], [100, 100, 100])
    [5, 2, 1]
    >>> divided(8, [1.0, 0.5, 0.25], [3, 100, 100])
    [3, 3, 2]
    """
    given = [0] * len(weights)
    total = min(total, sum(available))
    open_ones = [place for place, there in enumerate(available) if there > 0]
    while open_ones:
        left = total - sum(given)
        scale = left / sum(weights[place] for place in open_ones)
        full = [place for place in open_ones if weights[place] * scale >= available[place]]
        if not full:
            parts = {place: weights[place] * scale for place in open_ones}
            given = [math.floor(parts[place]) if place in parts else given[place] for place in range(len(given))]
            by_remainder = sorted(open_ones, key=lambda place: (math.floor(parts[place]) - parts[place], place))
            for place in by_remainder[: total - sum(given)]:
                given[place] += 1
            break
        for place in full:
            given[place] = available[place]
            open_ones.remove(place)
    return given
