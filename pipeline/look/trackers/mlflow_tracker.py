"""MLflow: to the server of MLFLOW_TRACKING_URI, or to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from pipeline.look.trackers.series import Point

PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Of a run that a server keeps waiting, unless the user has set another: MLflow's own is several minutes a request."""
for _name, _value in {"MLFLOW_ALLOW_FILE_STORE": "true", **PATIENCE}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402  it reads these when it is imported
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

METRICS, PARAMS = 1000, 100
"""How many a request may have: MLflow's own limits."""
LONGEST = 6000
"""Characters of a parameter's value that MLflow keeps."""


Item = TypeVar("Item")


class LiveMlflow:
    """One MLflow run, tagged with the identity. What it has already is read back, so that nothing is there twice.

    Args:
        uri: of the server, or of a directory.
        name: of the run.
        identity: of the run, whichever process sends it.
        settings: the run's config, by dotted key.
    """

    def __init__(self, uri: str, name: str, identity: str, settings: dict[str, Any]) -> None:
        self._uri, self._name, self._identity, self._settings = uri, name, identity, settings
        self._client = MlflowClient(tracking_uri=uri)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rollbook")
        experiment = self._client.get_experiment_by_name(title)
        self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._open()

    def _open(self) -> None:
        earlier = self.earlier()
        self._id = earlier[0].info.run_id if earlier else self._create()
        self._sent = set(self._there(earlier[0].data.metrics)) if earlier else set()
        if earlier:
            self._client.update_run(self._id, status="RUNNING")

    def earlier(self) -> list[Run]:
        """Runs with the identity, the newest first."""
        found: list[Run] = self._client.search_runs([self._experiment], f"tags.rollbook = '{self._identity}'")
        return found

    def renew(self) -> None:
        """Replace what was sent before."""
        for run in self.earlier():
            self._client.delete_run(run.info.run_id)
        self._open()

    def _create(self) -> str:
        run_id: str = self._client.create_run(self._experiment, run_name=self._name).info.run_id
        for some in _batches(self._settings.items(), PARAMS):
            self._client.log_batch(run_id, params=[Param(key, str(value)[:LONGEST]) for key, value in some])
        self._client.log_batch(run_id, tags=[RunTag("rollbook", self._identity)])
        return run_id

    def _there(self, names: Iterable[str]) -> Iterator[tuple[str, int, int]]:
        """Keys of the points that were sent: the metrics of a point have one time and one step."""
        history = {name: self._client.get_metric_history(self._id, name) for name in names}
        iterations = {(value.timestamp, value.step): value.value for value in history.pop("iteration", [])}
        for name, values in history.items():
            for value in values:
                figures = {"iteration": iterations.get((value.timestamp, value.step), 0.0), name: value.value}
                yield Point(value.step, 0.0, figures).key

    def add(self, point: Point) -> None:
        try:
            self.add_all([point])
        except MlflowException:
            before = self._id
            self._open()
            if self._id == before:
                raise
            self.add_all([point])  # `rollbook track` replaced the run meanwhile

    def add_all(self, points: Iterable[Point]) -> None:
        """Send what is not there yet, in as few requests as may be."""
        new = {point.key: point for point in points if point.key not in self._sent}
        for some in _batches(_metrics(new.values()), METRICS):
            self._client.log_batch(self._id, metrics=some)
        self._sent |= set(new)

    @property
    def where(self) -> str:
        if "MLFLOW_TRACKING_URI" in os.environ:
            return self._uri
        return f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {quote(self._uri)}"

    @property
    def generated(self) -> int:
        return max((step for kind, _, step in self._sent if kind == "generate"), default=0)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def open_live(name: str, identity: str, settings: dict[str, Any], place: Path) -> LiveMlflow:
    """The run of that identity, to be added to."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (place / "mlflow").absolute().as_uri()
    return LiveMlflow(uri, name, identity, settings)


def send(name: str, identity: str, settings: dict[str, Any], points: Iterable[Point], place: Path) -> str:
    """One MLflow run, tagged with the identity; an earlier one with that tag is replaced."""
    tracker = open_live(name, identity, settings, place)
    tracker.renew()
    tracker.add_all(points)
    tracker.close()
    return tracker.where


def _metrics(points: Iterable[Point]) -> Iterator[Metric]:
    for point in points:
        for key, value in point.figures.items():
            yield Metric(key, float(value), round(1000 * point.time), point.step)


def _batches(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """
    >>> list(_batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    left = iter(items)
    while some := list(islice(left, most)):
        yield some
