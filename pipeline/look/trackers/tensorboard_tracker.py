"""TensorBoard: one event file per run, written anew each time."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
    directory = place / "tensorboard" / f"{name}-{identity}"
    shutil.rmtree(directory, ignore_errors=True)
    writer = EventFileWriter(str(directory))
    writer.add_event(Event(summary=_text("settings", settings)))
    for point in points:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.figures.items()]
        writer.add_event(Event(step=point.step, wall_time=point.time, summary=Summary(value=values)))
    writer.close()
    return f"tensorboard --logdir {directory.parent}"


def _text(tag: str, settings: dict[str, Any]) -> Summary:
    """The settings as a table in the text tab."""
    rows = "".join(f"\n| {code(key)} | {code(value)} |" for key, value in settings.items())
    table = f"| setting | value |\n|---|---|{rows}".encode()
    tensor = TensorProto(dtype=DT_STRING, string_val=[table], tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]))
    return Summary(value=[Summary.Value(tag=tag, metadata=create_summary_metadata(tag, None), tensor=tensor)])
