"""The trackers by name, and sending a run to one. Each is an optional library, imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError
from pipeline.run import Run
from pipeline.trackers.series import Point, points
from schemas.manifest import digest

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}
"""Name, which is also the module beside this one, and the package that it needs."""

MAY_CHANGE = ("iterations", "stop", "run_dir", "store", "trackers")
"""Settings that do not make it another run."""


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
        UserError: no such tracker, or its library is not installed.
    """
    if tracker not in TRACKERS:
        raise UserError(f"no tracker {tracker!r}; there are {', '.join(TRACKERS)}")
    try:
        module = importlib.import_module(f"pipeline.trackers.{tracker}_tracker")
    except ImportError as error:
        raise UserError(f"{tracker} is not installed ({error}); `pip install {TRACKERS[tracker]}`") from None
    to: Send = module.send
    settings = run.config.model_dump(mode="json")
    same = {key: value for key, value in settings.items() if key not in MAY_CHANGE}
    identity = digest({"base": run.iterations[0].policy.id, "config": same})[:16]
    return to(run.config.name, identity, dict(_flat(settings)), points(run), place)


def _flat(tree: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Settings by dotted key; lists are texts."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, str | int | float | bool) else str(value)
