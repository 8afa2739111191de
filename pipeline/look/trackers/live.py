"""A run's figures in a tracker while they are made. What was sent is read back at the start, so nothing is there twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.run import RunConfig
from pipeline.look.trackers.series import NOT_FIGURES, Point, finite, points, steps_of
from pipeline.look.trackers.tracker import LONGEST_WHY, flat_settings, identity_of, tracker_module
from pipeline.run.process import Event
from pipeline.run.state import Run


class LiveTracker(Protocol):
    """One tracker that takes points as they come."""

    def add(self, point: Point) -> None:
        """Send a point, unless one of its kind is there for that step and iteration."""

    @property
    def where(self) -> str:
        """Where to look: a command or an address."""

    @property
    def generated(self) -> int:
        """The last step of the points of generation that are there; 0 before the first."""

    def close(self) -> None:
        """Make sure that all is sent."""


class Live:
    """Listens to a run's stages, and looks at the run after each: what the events did not say is read from the tables.

    Args:
        config: of a run that asks for a tracker.
        warn: told once if the tracker fails; the run goes on without it.
        note: told where to look.

    Raises:
        UserError: the tracker's library is not installed.
    """

    def __init__(self, config: RunConfig, warn: Callable[[str], None], note: Callable[[str], None] = lambda text: None) -> None:
        assert config.track.to is not None
        self._name, self._warn, self._note = config.track.to, warn, note
        self._place = Path(config.track.out) if config.track.out else config.directory / "trackers"
        self._open_live: Callable[..., LiveTracker] = tracker_module(self._name).open_live
        self._run: Run | None = None
        self._tracker: LiveTracker | None = None
        self._done: dict[str, int] = {}
        self._whole = 0
        """First iteration that may have points which were not sent."""
        self._failed = False
        self._guard = threading.Lock()

    def tell(self, title: str, event: Event) -> None:
        """What a stage says: a run's listener."""
        if event["event"] == "started":
            self._done.pop(title, None)
        if event["event"] == "progress" and title.startswith("generate "):
            self._carefully(lambda: self._speed(title, event))
        if event["event"] in ("progress", "resumed") and title.startswith("train "):
            steps = event["steps"] if event["event"] == "resumed" else [event["figures"]]
            self._carefully(lambda: self._steps(title, steps))

    def see(self, run: Run) -> None:
        """The run after a stage, or before its first. The chain changes this object as it goes on."""
        self._run = run
        if run.iterations:
            self._carefully(lambda: self._send_rest(run))

    def close(self) -> None:
        if self._tracker:
            self._carefully(self._tracker.close)

    def _carefully(self, act: Callable[[], None]) -> None:
        """Figures are not worth a run: what a library or a disk refuses is a warning."""
        with self._guard:
            if self._failed:
                return
            try:
                act()
            except Exception as error:
                self._failed = True
                why = (" ".join(str(error).split()) or type(error).__name__)[:LONGEST_WHY]
                self._warn(f"track.to: {self._name} takes no more figures of this run: {why}. `rollbook track` sends them later")

    def _open(self, run: Run) -> LiveTracker:
        if self._tracker is None:
            settings = dict(flat_settings(run.config))
            self._tracker = self._open_live(run.config.name, identity_of(run), settings, self._place)
            self._note(f"figures go to {self._name}: {self._tracker.where}")
        return self._tracker

    def _steps(self, title: str, steps: Sequence[Mapping[str, Any]]) -> None:
        """Optimizer steps, by their rows of the metrics and timing tables."""
        run, number = self._run, int(title.split()[1])
        if run is None or not run.iterations:
            return
        before = sum(steps_of(step.checkpoint) for step in run.iterations if step.checkpoint and step.iteration < number)
        for row in steps:
            figures = {f"train/{name}": value for name, value in row.items() if name not in NOT_FIGURES}
            self._open(run).add(Point(before + row["step"], time.time(), {"iteration": number, **finite(figures)}))

    def _speed(self, title: str, event: Event) -> None:
        """How fast completions are made, at the number that were made so far."""
        run, made = self._run, event["done"] - self._done.get(title, 0)
        self._done[title] = event["done"]
        if run is None or not run.iterations or made <= 0:
            return
        tracker = self._open(run)
        figures = {"iteration": int(title.split()[1]), "generate/tokens_per_second": event["tokens_per_second"]}
        tracker.add(Point(tracker.generated + made, time.time(), figures))

    def _send_rest(self, run: Run) -> None:
        tracker = self._open(run)
        for point in points(run, self._whole):
            tracker.add(point)
        self._whole = next((step.iteration for step in run.iterations if step.checkpoint is None), len(run.iterations))
