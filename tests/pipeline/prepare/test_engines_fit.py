"""Several engines on a CPU have memory of their own each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.prepare.room import lines_of, refuse_unfit, room_for
from pipeline.sources import models

BASE = Path(__file__).resolve().parents[3] / "data/base"
Config = Callable[[dict[str, Any]], RunConfig]


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.room.has_gpu", lambda: False)


def test_engines_take_as_much_as_they_are(make_config: Config) -> None:
    config = make_config({"engine.replicas": 3})
    room = room_for(config, models.model_files(BASE), 64)
    assert room and room.engines == 3
    told, _ = lines_of(replace(room, engine=2_000_000_000))
    assert "; 3 engines about 6.0 GB; " in told


def test_more_engines_than_the_memory_holds_are_refused(make_config: Config) -> None:
    config = make_config({"engine.replicas": 10_000})
    room = room_for(config, models.model_files(BASE), 64)
    assert room
    with pytest.raises(UserError, match=r"the 10000 engines do not fit: .* What would fit: fewer engine\.replicas, a smaller"):
        refuse_unfit(room, config)
