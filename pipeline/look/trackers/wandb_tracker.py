"""Weights & Biases: offline, as files that `wandb sync` sends later, unless WANDB_MODE says otherwise."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import wandb

from pipeline.look.trackers.series import Point

PATIENCE = 30.0
"""Seconds that a run waits for W&B's servers, or for a login, before it goes on without them."""


class LiveWandb:
    """One W&B run with the identity as its id, and beside it the points that were sent, a line of JSON each.

    Points are rows in the order of these lines. A new process first sends what W&B lacks: an offline run lies whole in the newest
    directory, since W&B holds the last seconds back when a process is killed; an online run has the rows that arrived.

    Args:
        name: of the run.
        identity: of the run, whichever process sends it.
        settings: the run's config, by dotted key.
        place: W&B's files are under `wandb` in it.
        alone: no other process sends this run; older offline directories of it may go.
    """

    def __init__(self, name: str, identity: str, settings: dict[str, Any], place: Path, *, alone: bool = True) -> None:
        directory = place / "wandb"
        directory.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if alone and mode == "offline":
            for older in directory.glob(f"offline-run-*-{identity}"):
                shutil.rmtree(older, ignore_errors=True)
        quiet = wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            x_disable_meta=True,
            save_code=False,
            disable_git=True,
            init_timeout=PATIENCE,
            login_timeout=PATIENCE,
            reinit="create_new",
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "rollbook"),
            name=name,
            id=identity,
            config=settings,
            dir=str(place),
            mode=mode,
            resume="allow",
            settings=quiet,
        )
        for kind in ("train", "eval", "scheduled"):
            self._run.define_metric(f"{kind}/*", step_metric="step")
        self._run.define_metric("generate/*", step_metric="completions")
        self._lines = directory / f"{identity}.jsonl"
        self._sent: dict[tuple[str, int, int], Point] = {}
        for point in _read(self._lines, mend=alone):
            self._send(point)

    def add(self, point: Point, *, keep: bool = True) -> None:
        """Send a point unless it is there.

        Args:
            keep: have it among the lines too.
        """
        if point.key in self._sent:
            return
        if keep:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
        self._send(point)

    def _send(self, point: Point) -> None:
        row = len(self._sent)
        self._sent[point.key] = point
        if row >= self._run.starting_step:
            axis = "completions" if point.kind == "generate" else "step"
            self._run.log({**point.figures, axis: point.step, "_timestamp": point.time}, step=row)

    @property
    def where(self) -> str:
        return f"wandb sync {quote(str(Path(self._run.dir).parent))}" if self._run.offline else str(self._run.url)

    @property
    def generated(self) -> int:
        return max((step for kind, _, step in self._sent if kind == "generate"), default=0)

    def close(self) -> None:
        self._run.finish()


def open_live(name: str, identity: str, settings: dict[str, Any], place: Path) -> LiveWandb:
    """The run of that identity, to be added to."""
    return LiveWandb(name, identity, settings, place)


def send(name: str, identity: str, settings: dict[str, Any], points: Iterable[Point], place: Path) -> str:
    """The run of that identity with each point once; offline, in a directory of its own."""
    tracker = LiveWandb(name, identity, settings, place, alone=False)
    for point in points:
        tracker.add(point, keep=False)
    where = tracker.where
    tracker.close()
    return where


def _read(lines: Path, *, mend: bool) -> list[Point]:
    """The points of a file of them.

    Args:
        mend: drop the last line if it was cut when its process was killed.
    """
    text = lines.read_text(encoding="utf-8") if lines.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if mend and whole != text:
        lines.write_text(whole, encoding="utf-8")
    return [Point(**json.loads(line)) for line in whole.splitlines()]
