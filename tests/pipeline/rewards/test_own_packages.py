"""Graders of projects whose folders are called like rollbook's packages: in this process, in workers, and by `rollbook check`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent
from pipeline.rewards.pool import RewardItem
from pipeline.rewards.registry import resolve, source_hash

Grade = Callable[..., Any]
FILES = {
    "pipeline/my_rewards.py": """
        import typing
        from dataclasses import dataclass

        import pipeline.words as words
        import pipeline.words
        import schemas
        from pipeline.words import count
        from utils.scale import SCALE

        from . import words as beside
        from .deep.inner import TEN

        assert pipeline.words is words is beside
        assert schemas.OURS == "no"

        @dataclass(frozen=True)
        class Mark:
            value: "float"

        assert typing.get_type_hints(Mark) == {"value": float}

        def score(completion, answer, prompt, *, more: int = 0):
            import pipeline
            from flows.late import LATE
            from schemas import OURS

            assert pipeline.words is words and OURS == "no"
            return Mark(count(completion) * SCALE + TEN + LATE + more).value

        def of_rollbook(completion, answer, prompt):
            from pipeline.rewards.items import Score

            return Score(1.0, remark="remarked")

        class Judge:
            @staticmethod
            def score(completion, answer, prompt):
                return 7
    """,
    "pipeline/words.py": "import json\n\ndef count(text):\n    return len(json.loads(json.dumps(text)).split())\n",
    "pipeline/deep/inner.py": "from ..words import count\n\nTEN = 10 * count('one')\n",
    "pipeline/broken.py": "import pipeline.nowhere\n",
    "flows/__init__.py": "",
    "flows/late.py": "LATE = 100\n",
    "schemas/__init__.py": "OURS = 'no'\n",
    "utils/scale.py": "from pipeline.words import count\n\nSCALE = count('a b')\n",
    "numpy/notes.txt": "a folder of that name is no package\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(source), encoding="utf-8")
    return tmp_path


def grader(name: str, **args: Any) -> RewardComponent:
    return RewardComponent(grader=name, args=args)


def test_a_grader_in_a_package_named_pipeline_is_found_with_what_it_imports(project: Path) -> None:
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("flows", "pipeline", "schemas")}
    path = list(sys.path)
    assert resolve(grader("pipeline.my_rewards:score", more=1000))("three words here", None, {}) == 3 * 2 + 10 + 100 + 1000
    assert resolve(grader("pipeline.my_rewards:Judge.score"))("", None, {}) == 7
    assert resolve(grader("pipeline.my_rewards:of_rollbook"))("", None, {}).remark == "remarked"
    assert all(sys.modules[name] is module for name, module in before.items())
    assert (pipeline.__file__ or "").startswith(str(Path(__file__).parents[3]))
    assert sys.path == path


def test_a_worker_grades_with_it(project: Path, grade: Grade) -> None:
    found = grade(
        [grader("pipeline.my_rewards:score"), RewardComponent(grader="pipeline.my_rewards:of_rollbook", name="remarked")],
        [RewardItem("two words", None, {}), RewardItem("", None, {})],
    )
    assert [result.error for result in found] == [None, None]
    assert [result.components["reward_score"] for result in found] == [2 * 2 + 110, 110]


def test_the_file_that_was_found_is_the_one_that_is_hashed(project: Path) -> None:
    before = source_hash(grader("pipeline.my_rewards:score"))
    with (project / "pipeline" / "my_rewards.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert source_hash(grader("pipeline.my_rewards:score")) != before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pipeline.my_reward:score", "no module 'pipeline.my_reward' in the working directory"),
        ("pipeline.my_rewards:scores", "module pipeline.my_rewards has no 'scores'; did you mean score?"),
        ("pipeline.broken:score", "importing pipeline.broken failed: No module named 'pipeline.nowhere'"),
        ("nowhere.at_all:score", "no module 'nowhere' in the working directory"),
    ],
)
def test_what_cannot_be_found_is_named_as_the_user_did(project: Path, name: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(grader(name))
    assert expected in str(caught.value)
    assert "_project" not in str(caught.value)


def test_a_plain_folder_does_not_hide_an_installed_package(project: Path) -> None:
    (project / "pipeline" / "sums.py").write_text(
        "import numpy\n\ndef total(completion, answer, prompt):\n    return numpy.sum([1, 2])\n"
    )
    assert resolve(grader("pipeline.sums:total"))("", None, {}) == 3


def test_modules_of_rollbook_are_still_found_under_their_names(project: Path) -> None:
    assert resolve(grader("pipeline.rewards.graders.pattern:regex", pattern="a"))("a", "a", {}, None) == 1


def test_the_same_names_in_two_directories_are_two_modules(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / "pipeline").mkdir(parents=True)
    (other / "pipeline" / "my_rewards.py").write_text("def score(completion, answer, prompt):\n    return 5\n")
    first = resolve(grader("pipeline.my_rewards:score"))
    monkeypatch.chdir(other)
    assert resolve(grader("pipeline.my_rewards:score"))("a", None, {}) == 5
    assert first("a", None, {}) == 112
