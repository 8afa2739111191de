"""`rollbook compare` as a user meets it: refusals at once, and the real thing on a tiny run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.commands.console import StageConsole
from pipeline.config.run import RunConfig
from pipeline.run.record import save_run
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Store

ROOT = Path(__file__).resolve().parents[2]
ROLLBOOK = Path(sys.executable).with_name("rollbook")
TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "model": {"path": str(ROOT / "data/base")},
    "data": {
        "train": {"path": str(ROOT / "data/arithmetic/train.parquet"), "prompt_id": "prompt_id", "limit": 64},
        "heldout": {"path": str(ROOT / "data/arithmetic/heldout.parquet"), "prompt_id": "prompt_id", "limit": 16},
        "template": "Q:{question}=",
    },
    "engine": {"max_num_seqs": 8, "kv_cache_mib": 32},
    "generate": {"prompts": 8, "samples": 4, "max_tokens": 48},
    "reward": {"components": [{"grader": "regex", "args": {"pattern": "A:(-?[0-9]+)$"}}]},
    "train": {"epochs": 1, "batch_completions": 16, "learning_rate": 1e-4},
    "evaluate": {"samples": 2, "bootstrap": 200},
}
"""8 prompts x 4 samples, 16 held-out prompts."""
FAILING = "opmd:coefficient=1e300"
"""Its loss is not a number: 1e300 is infinite in float32, and the first step's drift is 0."""


@pytest.fixture
def begun(project: Path, make_config: Callable[..., RunConfig], make_artifact: Callable[..., Artifact], store: Store) -> Path:
    """A run directory with rollouts, as far as a refusal looks."""
    config = make_config({"store": str(store.root)})
    base, train, heldout = make_artifact("checkpoint"), make_artifact("prompts"), make_artifact("prompts", name="heldout")
    answers = Answers(make_artifact("rollouts", name="sampled"), None, make_artifact("rollouts"))
    directory = project / "runs" / "small"
    save_run(Run(config, train, heldout, [Iteration(0, base, answers)], "evaluate 0"), directory)
    return directory


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere", "-a", "grpo"), "nowhere: no run there"),
        (("runs/small", "-a", "reinforce,gpro"), "no algorithm 'gpro'; did you mean"),
        (("runs/small", "-a", "grpo:lo=1"), "grpo has no setting 'lo'"),
        (("runs/small", "-a", "grpo", "--set", "generate.samples=2"), "--set generate: part of the run"),
        (("runs/small", "-a", "grpo", "--set", "train.epoch=2"), "train.epoch: unknown key; did you mean `epochs`?"),
        (("runs/small", "-a", "grpo", "-i", "1"), "no training rollouts of iteration 1"),
    ],
    ids=" ".join,
)
def test_a_comparison_that_cannot_be_is_refused_before_any_work(
    rollbook: Any, begun: Path, arguments: tuple[str, ...], expected: str
) -> None:
    before = sorted(begun.rglob("*"))
    said = rollbook("compare", *arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("rollbook: ") and expected in said.err
    assert sorted(begun.rglob("*")) == before


def test_algorithms_must_be_named(rollbook: Any, begun: Path) -> None:
    said = rollbook("compare", "runs/small")
    assert said.status == 2
    assert "--algorithms" in said.err


def test_a_failed_stage_is_told_as_it_is() -> None:
    said = io.StringIO()
    with StageConsole(Console(file=said, width=100)) as console:
        console.tell("grpo: train", {"event": "started"})
        console.tell("grpo: train", {"event": "failed", "message": "no [bold]column[/bold]"})
    assert said.getvalue().strip() == "✗ grpo: train      no [bold]column[/bold]"


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The installed command in an empty directory."""
    place = tmp_path_factory.mktemp("place")
    environment = {**os.environ, "PREFECT_HOME": str(place / "prefect"), "COLUMNS": "100"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(ROLLBOOK), *map(str, arguments)]
        return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=550)

    yield run


@pytest.fixture(scope="module")
def tiny(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has generated and nothing more."""
    directory = tmp_path_factory.mktemp("tiny")
    (directory / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    done = command("generate", directory / "tiny.yaml", "--set", f"run_dir={directory / 'run'}")
    assert done.returncode == 0, done.stderr
    return directory / "run"


def manifests(run: Path) -> dict[str, int]:
    """When each artifact was finished."""
    store = run / "artifacts"
    return {str(path.parent.relative_to(store)): path.stat().st_mtime_ns for path in store.glob("*/*/manifest.json")}


def kinds(names: Any) -> dict[str, int]:
    found = [name.split("/")[0] for name in names]
    return {kind: found.count(kind) for kind in sorted(set(found))}


@pytest.mark.slow
def test_what_is_new_is_computed_and_nothing_else(command: Command, tiny: Path) -> None:
    begun = manifests(tiny)
    first = command("compare", tiny, "--algorithms", "reinforce,grpo:low=0.1", "--no-baseline", "--json")
    assert first.returncode == 0, first.stderr
    two = manifests(tiny)
    assert kinds(two.keys() - begun.keys()) == {"checkpoint": 2, "comparison": 1, "evaluation": 3, "rollouts": 4, "shaped": 2}
    answer = json.loads(first.stdout)
    assert {row["label"] for row in answer["algorithms"]} == {"reinforce", "grpo:low=0.1"}
    assert all(0 <= row["pass_at_1"] <= 1 for row in answer["algorithms"])

    more = command("compare", tiny, "-a", f"reinforce,{FAILING},grpo:low=0.1,rec-oneside-nois", "--no-baseline")
    assert more.returncode == 1, more.stderr
    assert "the loss is nan" in " ".join(more.stdout.split())
    three = manifests(tiny)
    # rec-oneside-nois shapes as reinforce does
    assert kinds(three.keys() - two.keys()) == {"checkpoint": 1, "comparison": 1, "evaluation": 1, "rollouts": 2}
    assert {name: time for name, time in three.items() if name in two} == two
    assert "the loss is nan" in (tiny / "comparison.html").read_text(encoding="utf-8")

    again = command("compare", tiny, "-a", "reinforce,grpo:low=0.1,rec-oneside-nois", "--no-baseline")
    assert (again.returncode, again.stderr) == (0, "")
    assert kinds(manifests(tiny).keys() - three.keys()) == {"comparison": 1}
    assert not any("failed" in line for line in again.stdout.splitlines())

    same = command("compare", tiny, "-a", "reinforce,grpo:low=0.1", "--no-baseline", "--json")
    assert json.loads(same.stdout)["id"] == answer["id"]
    for artifact in Store(tiny / "artifacts").artifacts():
        artifact.verify()
