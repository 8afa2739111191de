"""Weights & Biases: online if the user is logged in and has not chosen otherwise, else files that `wandb sync` sends later."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import wandb

from pipeline.look.trackers.series import Point


def send(name: str, identity: str, settings: dict[str, Any], points: Iterable[Point], place: Path) -> str:
    """One wandb run with the identity as its id. WANDB_MODE, WANDB_PROJECT and so on are respected; offline is the default."""
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    project = os.environ.get("WANDB_PROJECT", "rollbook")
    place.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, save_code=False, disable_git=True
    )
    with wandb.init(
        project=project, name=name, id=identity, config=settings, dir=str(place), mode=mode, resume="allow", settings=quiet
    ) as run:
        for point in points:
            run.log({**point.figures, "_timestamp": point.time}, step=point.step)
        directory, url = run.dir, run.url
    return url or f"wandb sync {Path(directory).parent}"
