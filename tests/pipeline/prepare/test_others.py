"""Models beside the run's own count where they are held, scored by and stored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.prepare.others import Beside, beside
from pipeline.prepare.room import RoomOnMachine, lines_of, refuse_unfit, room_for
from pipeline.sources import models
from pipeline.train.needs import size_in

BASE = Path(__file__).resolve().parents[3] / "data/base"
Config = Callable[[dict[str, Any]], RunConfig]


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.room.has_gpu", lambda: False)


@pytest.fixture
def others(make_config: Config) -> Callable[..., tuple[RunConfig, Beside]]:
    def found(**settings: Any) -> tuple[RunConfig, Beside]:
        config = make_config(settings)
        algorithm = resolve(config.train.algorithm, config.train.algorithm_args)
        return config, beside([(config, algorithm)], models.model_files(BASE))

    return found


def room(config: RunConfig, others: Beside | None = None) -> RoomOnMachine:
    found = room_for(config, models.model_files(BASE), 64, others)
    assert found is not None
    return found


def weights() -> int:
    size = size_in(models.model_files(BASE))
    assert size is not None
    return size.weights


def test_a_run_with_one_model_has_none_beside(others: Callable[..., tuple[RunConfig, Beside]]) -> None:
    config, found = others(**{"train.algorithm": "rec-oneside-nois"})
    assert found == Beside()
    assert room(config, found).scoring == 0


def test_a_reference_of_the_run_scores_and_takes_no_room_in_the_store(others: Callable[..., tuple[RunConfig, Beside]]) -> None:
    config, found = others(**{"train.algorithm": "dpo"})
    assert found.elsewhere == found.drawn_by == () and len(found.scored_by) == 1
    with_it, without = room(config, found), room(config)
    assert with_it.disk == without.disk
    assert 4 * weights() < with_it.scoring < with_it.fit.bytes + (200 << 20)
    told, _ = lines_of(replace(with_it, scoring=700_000_000))
    assert "; scoring about 0.7 GB; the engine" in told


def test_a_reference_from_elsewhere_is_stored_too(others: Callable[..., tuple[RunConfig, Beside]], tmp_path: Path) -> None:
    place = shutil.copytree(BASE, tmp_path / "other")
    config, found = others(**{"train.algorithm": "dpo", "reference": str(place)})
    assert [next(iter(files.values())).parent for files in found.scored_by] == [place]
    assert room(config, found).disk - room(config).disk == 4 * weights()


def test_a_reference_that_nothing_reads_counts_nowhere(others: Callable[..., tuple[RunConfig, Beside]], tmp_path: Path) -> None:
    place = shutil.copytree(BASE, tmp_path / "other")
    _, found = others(**{"train.algorithm": "rec-oneside-nois", "reference": str(place)})
    assert found == Beside()


@pytest.mark.parametrize(
    ("other", "iterations", "held"), [("reference", 2, True), ("behavior", 2, True), ("reference", 1, False), ("model", 1, True)]
)
def test_an_engine_holds_the_other_model_of_a_mixture(
    others: Callable[..., tuple[RunConfig, Beside]], tmp_path: Path, other: str, iterations: int, held: bool
) -> None:
    place = str(shutil.copytree(BASE, tmp_path / "other")) if other == "model" else other
    config, found = others(**{"generate.mixture": {"with": place}, "iterations": iterations})
    assert bool(found.drawn_by) == held
    assert bool(found.elsewhere) == (other == "model")
    alone, together = room(config), room(config, found)
    assert (together.engine - alone.engine > 4 * weights()) == held
    assert ("with both models" in next(lines_of(together))) == held


def test_a_mixture_without_the_other_models_share_holds_one_model(others: Callable[..., tuple[RunConfig, Beside]]) -> None:
    _, found = others(**{"generate.mixture": {"with": "behavior", "share": 0.0}, "iterations": 3})
    assert found == Beside()


def test_a_model_that_is_too_large_to_score_is_refused(others: Callable[..., tuple[RunConfig, Beside]]) -> None:
    config, found = others(**{"train.algorithm": "dpo"})
    with pytest.raises(UserError, match="scoring does not fit: the largest model that scores needs about"):
        refuse_unfit(replace(room(config, found), scoring=1 << 60), config)
