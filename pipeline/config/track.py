"""Where a run's figures go while it works."""

from __future__ import annotations

from typing import Literal

from pipeline.config.base import Model


class TrackConfig(Model):
    to: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Tracker that is sent every optimizer step, every evaluation and the speed of generation as they happen. Its library is an
    extra (`trackers`). W&B works offline unless WANDB_MODE says otherwise, MLflow writes files unless MLFLOW_TRACKING_URI names a
    server. Any run's figures can be sent later too: `rollbook track`."""
    out: str | None = None
    """Directory of the tracker's files. Default: trackers in the run's directory."""
