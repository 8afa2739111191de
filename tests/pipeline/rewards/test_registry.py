"""What is refused before anything is graded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.registry import check_reward_config, resolve

Own = Callable[[str], str]


def refusal(grader: str, **args: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(RewardComponent(grader=grader, args=args))
    return str(caught.value)


def test_a_module_that_does_not_end_its_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.common.own_code.IMPORT_SECONDS", 0.3)
    Path("waits.py").write_text("import time\ntime.sleep(60)\n\ndef score(completion):\n    return 1\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"importing waits took longer than 0.3 s; what a module does when it is imported must end"
    ):
        check_reward_config(RewardConfig(components=(RewardComponent(grader="waits:score"),)))
    Path("quick.py").write_text("def score(completion):\n    return 1\n", encoding="utf-8")
    check_reward_config(RewardConfig(components=(RewardComponent(grader="quick:score"),)))


def test_unknown_grader_is_answered_with_the_nearest_and_with_how_to_name_a_function() -> None:
    text = refusal("exactmatch")
    assert "did you mean exact_match?" in text
    assert "'package.module:function'" in text


def test_unknown_grader_with_nothing_near_is_answered_with_all() -> None:
    text = refusal("perplexity_v2")
    assert "built in are exact_match, regex, math_verify, reasoning_gym" in text


@pytest.mark.parametrize(
    ("grader", "args", "text"),
    [
        ("exact_match", {"ignorecase": True}, "unknown arg `ignorecase`; did you mean `ignore_case`?"),
        ("exact_match", {"zzz": 1}, "it takes extract, ignore_case, normalize_whitespace"),
        ("exact_match", {"completion": "x"}, "unknown arg `completion`"),
        ("exact_match", {"ignore_case": "yes"}, "args.ignore_case: expected bool, found 'yes'"),
        ("regex", {}, "needs a value for args.pattern"),
        ("regex", {"pattern": 3}, "args.pattern: expected str, found 3"),
        ("regex", {"pattern": "a("}, "'a(' is not a regular expression"),
        ("regex", {"pattern": "a", "which": "middle"}, "expected 'first' or 'last', found 'middle'"),
        ("math_verify", {"precision": True}, "args.precision: expected int, found True"),
        ("math_verify", {"extract": 1}, "args.extract: expected str | None, found 1"),
        ("reasoning_gym", {"data": "countdown"}, "did you mean `dataset`?"),
    ],
)
def test_args_that_a_built_in_does_not_take(grader: str, args: dict[str, Any], text: str) -> None:
    assert text in refusal(grader, **args)


OWN = """
    from collections.abc import Mapping

    def length(completion, answer, prompt, *, per: int = 1, scale: float = 1):
        return len(completion) / per * scale

    def anything(completion, answer, prompt, **args):
        return len(args)

    def unresolvable(completion, answer, prompt, *, table: "Missing" = None):
        return 0

    def other(text, gold, row):
        return 0

    async def later(completion, answer, prompt):
        return 0

    class Judge:
        @staticmethod
        def score(completion, answer, prompt):
            return 7

    LIMIT = 3
"""


def test_a_function_of_the_users_is_found_in_the_working_directory(own: Own) -> None:
    module, path = own(OWN), list(sys.path)
    assert resolve(RewardComponent(grader=f"{module}:length", args={"per": 2}))("four", None, {}) == 2.0
    assert resolve(RewardComponent(grader=f"{module}:length", args={"scale": 3}))("four", None, {}) == 12.0
    assert resolve(RewardComponent(grader=f"{module}:anything", args={"a": 1, "b": 2}))("", None, {}) == 2
    assert resolve(RewardComponent(grader=f"{module}:unresolvable", args={"table": 1}))("", None, {}) == 0
    assert resolve(RewardComponent(grader=f"{module}:Judge.score"))("", None, {}) == 7
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("lenght", {}, "has no 'lenght'; did you mean length?"),
        ("LIMIT", {}, "LIMIT is a int, expected a function"),
        (
            "other",
            {},
            "its signature is (text, gold, row), and parameters are matched by name: (completion, answer, prompt)",
        ),
        ("later", {}, "async def"),
        ("length", {"pre": 2}, "unknown arg `pre`; did you mean `per`?"),
        ("length", {"per": "2"}, "args.per: expected int, found '2'"),
        ("Judge.scores", {}, "did you mean score?"),
        ("", {}, "incomplete"),
    ],
)
def test_a_function_of_the_users_that_cannot_be_called(own: Own, name: str, args: dict[str, Any], text: str) -> None:
    assert text in refusal(f"{own(OWN)}:{name}", **args)


def test_a_module_that_is_missing_or_fails_to_import(own: Own, tmp_path: Path) -> None:
    text = refusal("no_such_module_here.part:function")
    assert "no module 'no_such_module_here'" in text
    assert str(tmp_path) in text
    assert "failed: No module named 'not_there'" in refusal(f"{own('import not_there')}:f")
    assert "failed: SystemExit: 3" in refusal(f"{own('raise SystemExit(3)')}:f")
    assert "failed: SyntaxError" in refusal(f"{own('def')}:f")


def test_the_config_check_names_every_bad_component() -> None:
    components = (
        RewardComponent(grader="exact_match"),
        RewardComponent(grader="regexp", args={"pattern": "a"}),
        RewardComponent(grader="regex", args={"pattern": "("}),
    )
    with pytest.raises(UserError) as caught:
        check_reward_config(RewardConfig(components=components))
    first, second = str(caught.value).splitlines()
    assert first.startswith("reward.components.1 (regexp): no such grader; did you mean regex?")
    assert second.startswith("reward.components.2 (regex): pattern: '(' is not a regular expression")


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="weight is nan, expected a finite number"):
        check_reward_config(RewardConfig(components=(RewardComponent(grader="exact_match", weight=float("nan")),)))


def test_the_pool_refuses_what_the_check_refuses(own: Own) -> None:
    components = (RewardComponent(grader="exact_match"), RewardComponent(grader=f"{own(OWN)}:lenght"))
    with (
        pytest.raises(UserError, match=r"reward\.components\.1 \(own_.*did you mean length\?"),
        RewardPool(RewardConfig(components=components, workers=2)),
    ):
        pass


def test_checking_built_ins_imports_no_library() -> None:
    program = """
import sys
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.registry import check_reward_config
args = {"regex": {"pattern": "a"}, "reasoning_gym": {"dataset": "chain_sum"}}
graders = ["exact_match", "regex", "math_verify", "reasoning_gym"]
config = RewardConfig(components=tuple(RewardComponent(grader=g, args=args.get(g, {})) for g in graders))
check_reward_config(config)
heavy = {"math_verify", "reasoning_gym", "sympy", "torch", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(next(iter(pipeline.__path__))).parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=60)
