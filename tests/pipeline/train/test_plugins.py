"""Algorithms of the user's own through the real stage processes: shaped, trained, and known by their source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.answers import hands, working
from pipeline.algorithms import plugins
from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.run.order import only
from pipeline.run.parts import Part
from pipeline.shape.order import shape_order
from pipeline.store import Artifact, read_table
from pipeline.train.order import train_order
from schemas import Metrics, Shaped

ROOT = Path(__file__).resolve().parents[3]
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def trained(bench: Any, make_config: MakeConfig, tmp_path: Path) -> Callable[..., tuple[Artifact, Artifact]]:
    """trained(file, algorithm, **args): what its own processes make of the tiny model's rollouts: (shaped, checkpoint)."""

    def make(file: Path, algorithm: str, **args: Any) -> tuple[Artifact, Artifact]:
        train = {"algorithm": algorithm, "algorithm_args": args, "epochs": 1, "batch_completions": 12, "learning_rate": 0.01}
        changes = {"train": train, "plugins": [str(file)], "store": str(bench.store.root), "run_dir": str(tmp_path / "run")}
        config = make_config({**changes, "model.dtype": "float32"})
        policy, rollouts = bench.policy(), bench.rollouts()
        with hands() as processes:
            answers = working(config, processes)
            shaped = only(answers.answer(shape_order(config, 0, rollouts)))
            return shaped, only(answers.answer(train_order(config, 0, policy, [Part(rollouts, shaped)])))

    return make


Trained = Callable[..., tuple[Artifact, Artifact]]


@pytest.mark.parametrize(
    ("name", "file"),
    [("luffy", "own_cell.py"), pytest.param("raw-clip", "own_algorithm.py", marks=pytest.mark.slow)],
)
def test_the_examples_train_in_processes_of_their_own(name: str, file: str, trained: Trained) -> None:
    shaped, checkpoint = trained(ROOT / "examples" / file, name)
    source = plugins.from_file(str(ROOT / "examples" / file))[0].source
    assert shaped.recipe["source"] == checkpoint.recipe["algorithm"]["source"] == source
    metrics = read_table(checkpoint, Metrics)
    assert len(metrics) == 2
    assert metrics["grad_norm"].min() > 0  # type: ignore[operator]
    advantages = {round(value, 4) for value in read_table(shaped, Shaped)["advantage"]}
    assert advantages == {"luffy": {0.6667, -0.3333}, "raw-clip": {0.5, -0.5}}[name]


def test_a_file_that_was_edited_while_a_run_went_on_is_refused_by_the_stage(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    source = (ROOT / "examples/own_algorithm.py").read_text(encoding="utf-8")
    file.write_text(source, encoding="utf-8")
    plugins.from_file(str(file))  # as the run read it when it started
    file.write_text(source.replace("0.5", "0.25"), encoding="utf-8")
    with pytest.raises(UserError, match="raw-clip: its plugin was edited since the command started"):
        trained(file, "raw-clip")
