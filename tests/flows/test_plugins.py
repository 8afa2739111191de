"""`--plugin` as a user meets it: an algorithm of one's own is found, described and checked, and a slip in it is answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Rollbook = Callable[..., Any]
CLASH = "from pipeline.algorithms.grpo import GRPO\nALGORITHMS = (GRPO,)\n"
SLIP = """
from dataclasses import dataclass
from pipeline.algorithms.cells.cell import Cell
from pipeline.algorithms.reinforce import REINFORCE

@dataclass(frozen=True, kw_only=True, slots=True)
class Slip(Cell):
    def weight(self, drift):
        return drift.nonsense

ALGORITHMS = (REINFORCE.replace(name="slip", importance=Slip()),)
"""


@pytest.fixture
def plugins(project: Path) -> Path:
    """The project with some files of the user's own."""
    shutil.copy(ROOT / "examples/own_cell.py", project / "mine.py")
    for name, source in {"clash.py": CLASH, "slip.py": SLIP, "syntax.py": "def f(:\n", "nothing.py": "x = 1\n"}.items():
        (project / name).write_text(source, encoding="utf-8")
    return project


def test_an_algorithm_of_a_file_is_listed_and_described(plugins: Path, rollbook: Rollbook) -> None:
    listed = json.loads(rollbook("algorithms", "--json", "--plugin", "mine.py").out)
    assert [row["name"] for row in listed][-1] == "luffy"
    said = rollbook("algorithms", "luffy", "--plugin", "mine.py")
    assert said.status == 0
    assert "ShapedProbability" in said.out and "gamma" in said.out
    assert "luffy" not in rollbook("algorithms").out


def test_check_takes_a_file_from_the_command_line_or_from_the_config(plugins: Path, rollbook: Rollbook) -> None:
    chosen = ("--set", "train.algorithm=luffy", "--set", "train.algorithm_args.gamma=0.2")
    for named in (("--plugin", "mine.py"), ("--set", "plugins=[mine.py]")):
        said = rollbook("check", "run.yaml", *named, *chosen)
        assert (said.status, said.err) == (0, "")
        assert "algorithm  luffy: REINFORCE whose tokens weigh" in said.out
    said = rollbook("check", "run.yaml", *chosen)
    assert said.status == 2
    assert "no algorithm 'luffy'" in said.err and "--plugin FILE.py" in said.err


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("clash.py", "plugin clash.py: 'grpo' is the name of a built-in algorithm"),
        ("syntax.py", "plugin syntax.py, line 1: invalid syntax"),
        ("nothing.py", "plugin nothing.py: has no ALGORITHMS"),
        ("nowhere.py", "plugin nowhere.py: no such file"),
        ("mine", "plugin mine: expected a Python file"),
    ],
)
@pytest.mark.parametrize("command", [("algorithms",), ("check", "run.yaml"), ("train", "run.yaml")], ids=lambda words: words[0])
def test_a_file_that_cannot_be_used_is_refused(
    command: tuple[str, ...], file: str, expected: str, plugins: Path, rollbook: Rollbook
) -> None:
    said = rollbook(*command, "--plugin", file)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"rollbook: {expected}")
    assert "Traceback" not in said.err
    assert not (plugins / "runs").exists()


def test_a_slip_in_a_cell_is_found_before_any_work(plugins: Path, rollbook: Rollbook) -> None:
    said = rollbook("run", "run.yaml", "--plugin", "slip.py", "--set", "train.algorithm=slip")
    assert said.status == 2
    assert "slip: fails on four made-up completions: " in said.err
    assert "slip.py, line 9: AttributeError" in said.err
    assert not (plugins / "runs").exists()


def test_a_project_may_have_packages_of_rollbooks_names(plugins: Path, rollbook: Rollbook) -> None:
    """A grader in its `pipeline`, which imports from its `schemas`, and a plugin beside it that imports rollbook's `pipeline`."""
    for name, source in {
        "pipeline/rewards.py": "from schemas.words import WORDS\n\ndef score(completion, answer, prompt):\n    return WORDS\n",
        "schemas/words.py": "WORDS = 2\n",
        "flows/__init__.py": "raise SystemExit('not asked for')\n",
    }.items():
        (plugins / name).parent.mkdir(exist_ok=True)
        (plugins / name).write_text(source, encoding="utf-8")
    (plugins / "mine.py").rename(plugins / "pipeline" / "mine.py")
    graders = "reward.components=[{grader: 'pipeline.rewards:score'}]"
    said = rollbook("check", "run.yaml", "--plugin", "pipeline/mine.py", "--set", "train.algorithm=luffy", "--set", graders)
    assert (said.status, said.err) == (0, "")
    assert "algorithm  luffy: " in said.out
    said = rollbook("check", "run.yaml", "--set", graders.replace("score", "scores"))
    assert said.status == 2
    assert "module pipeline.rewards has no 'scores'; did you mean score?" in said.err
