"""TensorBoard: one event file per run, written anew each time; of a run that is watched live, one per process."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pipeline.common.text import code
from pipeline.look.trackers.series import Point


def send(name: str, identity: str, settings: dict[str, Any], points: Iterable[Point], place: Path) -> str:
    """Write `<place>/tensorboard/<name>-<identity>`; look with `tensorboard --logdir <place>/tensorboard`."""
    directory = _directory(place, name, identity)
    shutil.rmtree(directory, ignore_errors=True)
    writer = EventFileWriter(str(directory))
    writer.add_event(Event(summary=_text("settings", settings)))
    for point in points:
        writer.add_event(_event(point))
    writer.close()
    return f"tensorboard --logdir {quote(str(directory.parent))}"


class LiveTensorBoard:
    """Points of a run that goes on, in the directory that `send` writes.

    Args:
        directory: what lies there was sent before.
        settings: the run's config, by dotted key.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self._directory, self._settings = directory, settings
        self._open()

    def _open(self) -> None:
        self._sent: set[tuple[str, int, int]] = set()
        files = sorted(self._directory.glob("events.*"))
        for file in files:
            for data in RawEventFileLoader(str(file)).Load():
                event = Event.FromString(data)
                figures = {value.tag: value.simple_value for value in event.summary.value}
                self._sent.add(Point(event.step, event.wall_time, figures).key)
        self._writer = EventFileWriter(str(self._directory))
        (self._file,) = set(self._directory.glob("events.*")) - set(files)
        if not files:
            self._writer.add_event(Event(summary=_text("settings", self._settings)))

    def add(self, point: Point) -> None:
        if not self._file.exists():  # `rollbook track` wrote the directory anew meanwhile
            self._open()
        if point.key not in self._sent:
            self._writer.add_event(_event(point))
            self._writer.flush()
            self._sent.add(point.key)

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {quote(str(self._directory.parent))}"

    @property
    def generated(self) -> int:
        return max((step for kind, _, step in self._sent if kind == "generate"), default=0)

    def close(self) -> None:
        self._writer.close()


def open_live(name: str, identity: str, settings: dict[str, Any], place: Path) -> LiveTensorBoard:
    """`<place>/tensorboard/<name>-<identity>`, to be added to."""
    return LiveTensorBoard(_directory(place, name, identity), settings)


def _directory(place: Path, name: str, identity: str) -> Path:
    return place / "tensorboard" / f"{name}-{identity}"


def _event(point: Point) -> Event:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.figures.items()]
    return Event(step=point.step, wall_time=point.time, summary=Summary(value=values))


def _text(tag: str, settings: dict[str, Any]) -> Summary:
    """The settings as a table in the text tab."""
    rows = "".join(f"\n| {code(key)} | {code(value)} |" for key, value in settings.items())
    table = f"| setting | value |\n|---|---|{rows}".encode()
    tensor = TensorProto(dtype=DT_STRING, string_val=[table], tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]))
    return Summary(value=[Summary.Value(tag=tag, metadata=create_summary_metadata(tag, None), tensor=tensor)])
