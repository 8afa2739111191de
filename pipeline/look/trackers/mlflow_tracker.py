"""MLflow: to the server of MLFLOW_TRACKING_URI, or to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from pipeline.look.trackers.series import Point

BATCH = 1000
"""Metrics per request: MLflow's own limit."""
LONGEST = 6000
"""Characters of a parameter's value that MLflow keeps."""


def send(name: str, identity: str, settings: dict[str, Any], points: Iterable[Point], place: Path) -> str:
    """One MLflow run, tagged with the identity; an earlier one with that tag is replaced."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (place / "mlflow").absolute().as_uri()
    client = MlflowClient(tracking_uri=uri)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rollbook")
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    for earlier in client.search_runs([experiment_id], f"tags.rollbook = '{identity}'"):
        client.delete_run(earlier.info.run_id)
    run = client.create_run(experiment_id, run_name=name)
    params = [Param(key, str(value)[:LONGEST]) for key, value in settings.items()]
    client.log_batch(run.info.run_id, params=params, tags=[RunTag("rollbook", identity)])
    metrics = _metrics(points)
    while part := list(islice(metrics, BATCH)):
        client.log_batch(run.info.run_id, metrics=part)
    client.set_terminated(run.info.run_id)
    return uri if "MLFLOW_TRACKING_URI" in os.environ else f"mlflow ui --backend-store-uri {uri}"


def _metrics(points: Iterable[Point]) -> Iterator[Metric]:
    for point in points:
        for key, value in point.figures.items():
            yield Metric(key, float(value), round(1000 * point.time), point.step)
