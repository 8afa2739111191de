"""The trackers by name, and sending a run to one. Each is an optional library, imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from pipeline.common.errors import StageFailed, UserError
from pipeline.config.run import RunConfig
from pipeline.look.trackers.series import Point, points
from pipeline.run.state import Run
from schemas.manifest import digest

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""Name, which is also the module beside this one, and the package that it needs."""

MAY_CHANGE = ("iterations", "stop", "run_dir", "store", "tell", "track")
"""Settings that do not make it another run."""

LONGEST_WHY = 300
"""Characters that are shown of a library's error."""


class Send(Protocol):
    """One tracker. Sending the same run again must not leave its figures there twice."""

    def __call__(self, name: str, identity: str, settings: dict[str, Any], points: Iterable[Point], place: Path) -> str:
        """Send a run.

        Args:
            name: of the run.
            identity: 16 hex digits that stay the same while the run goes on.
            settings: the run's config, by dotted key.
            points: its figures.
            place: directory for trackers that write files.

        Returns:
            Where to look.
        """
        ...


def send(run: Run, tracker: str, place: Path) -> str:
    """Send a run's figures to a tracker, as far as the run is. Returns where to look.

    Raises:
        UserError: no such tracker, its library is not installed, or the run has no figures yet.
        StageFailed: the library says why it does not take them.
    """
    if tracker not in TRACKERS:
        raise UserError(f"no tracker {tracker!r}; there are {', '.join(TRACKERS)}")
    if not run.iterations:
        raise UserError(f"{run.config.name}: the run has no figures yet; send them once it has begun to generate")
    to: Send = tracker_module(tracker).send
    figures = list(points(run))
    try:
        return to(run.config.name, identity_of(run), dict(flat_settings(run.config)), figures, place)
    except Exception as error:  # each library has kinds of its own: no login, no such server, a full disk
        why = " ".join(str(error).split())[:LONGEST_WHY] or type(error).__name__
        raise StageFailed(f"{tracker}: {why}. Mend that and run the same command again.") from error


def tracker_module(tracker: str) -> Any:
    """The module of a tracker.

    Raises:
        UserError: its library is not installed.
    """
    try:
        return importlib.import_module(f"pipeline.look.trackers.{tracker}_tracker")
    except ImportError as error:
        raise UserError(f"{tracker} is not installed ({error}); `pip install {TRACKERS[tracker]}`") from None


def identity_of(run: Run) -> str:
    """16 hex digits that stay the same while a run that has begun goes on."""
    settings = run.config.model_dump(mode="json")
    same = {key: value for key, value in settings.items() if key not in MAY_CHANGE}
    return digest({"base": run.iterations[0].policy.id, "config": same})[:16]


def flat_settings(config: RunConfig) -> Iterable[tuple[str, Any]]:
    """A run's settings by dotted key."""
    return _flat(config.model_dump(mode="json"))


def _flat(tree: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Settings by dotted key; lists are texts."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, str | int | float | bool) else str(value)
