"""Tools: what models are told of functions, how their calls are read, and what they are told when a call is wrong."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.environment import EnvironmentConfig
from pipeline.environments.arithmetic import NotArithmetic, value_of
from pipeline.environments.calls import calls_in
from pipeline.environments.host import Host
from pipeline.environments.registry import check_environment, recipe_of_environment
from pipeline.environments.tools import Tools
from pipeline.sources.tools import schemas_of

MINE = '''
    from typing import Literal

    def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict:
        """What the weather will be
        in a city.

        Args:
            city: Its name,
                in English.
            days: How many.
        """
        if city == "Nowhere":
            raise KeyError("no such city")
        return {"city": city, "degrees": [20] * days}

    def bare(city): "Says nothing of its type."

    def silent(city: str): return city
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_tools.py").write_text(textwrap.dedent(MINE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def own(function: str) -> str:
    return f"my_own_tools:{function}"


def hermes(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_the_schema_of_a_function_is_its_hints_and_its_docstring() -> None:
    (schema,) = schemas_of([own("weather")])
    assert schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the weather will be in a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name, in English."},
                    "days": {"type": "integer", "description": "How many."},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                },
                "required": ["city"],
            },
        },
    }


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("bare", "its argument city has no type hint"),
        ("silent", "has no docstring"),
        ("wether", "did you mean weather"),
    ],
)
def test_a_function_that_cannot_be_told_of_is_refused(function: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"environment: tools: {own(function)}: .*{why}"):
        check_environment(EnvironmentConfig(tools=(own(function),)))


@pytest.mark.parametrize(
    ("text", "says", "error"),
    [
        (hermes("weather", city="Rome", days=2), '{"city": "Rome", "degrees": [20, 20]}', False),
        (hermes("calculator", expression="2*3"), "6", False),
        (hermes("calculator", expression="2*"), "Error: NotArithmetic: ends where a number is expected", True),
        (hermes("weather", city="Nowhere"), "Error: KeyError: 'no such city'", True),
        (hermes("wether", city="Rome"), "Error: no such tool; there are weather, calculator", True),
        (hermes("weather", town="Rome"), "Error: no such argument: town; it takes city, days, unit", True),
        (hermes("weather", days=2), "Error: missing argument: city", True),
        (hermes("weather", city=7), "Error: argument city is of another type than it takes", True),
        ("<tool_call>{'name': 1}</tool_call>", "Error: not JSON", True),
        ("<tool_call>" + "[" * 15_000, "Error: not JSON", True),
        ('<tool_call>{"name": "weather", "arguments": 3}</tool_call>', "Error: arguments that are no object", True),
        ("<tool_call>" + " " * 30_000, "Error: calls of more than 20,000 characters", True),
    ],
)
def test_what_a_call_is_answered(text: str, says: str, error: bool) -> None:
    said, reward, done, _ = Tools([own("weather"), "calculator"]).step(text)
    assert (said[0]["content"], said[0].get("error", False), reward, done) == (says, error, None, False)


def test_parallel_calls_are_answered_in_order_up_to_a_limit() -> None:
    text = "".join(hermes("calculator", expression=f"{number}+1") for number in range(5))
    said, _, done, _ = Tools(["calculator"], most_calls=3).step(text)
    assert [one["content"] for one in said] == ["1", "2", "3", "Error: more than 3 calls in a turn"] and not done


def test_a_turn_without_a_call_ends_the_episode() -> None:
    assert Tools(["calculator"]).step("It is 7.") == ([], None, True, {"void": False})


@pytest.mark.parametrize(("text", "void"), [("#### 7", False), ("I do not know.", True), (" ", True)])
def test_a_turn_that_neither_calls_nor_answers_is_void(text: str, void: bool) -> None:
    assert Tools(["calculator"], answer="####").step(text)[2:] == (True, {"void": void})
    assert Tools(["calculator"]).step(text)[3] == {"void": not text.strip()}
    with pytest.raises(UserError, match=r"environment\.args\.answer: '\(' is no regular expression"):
        Tools(["calculator"], answer="(")


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        ("json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g"}', [("f", {"a": 1}), ("g", {})]),
        ("json", '{"name": "f"', [("", {})]),
        ("json", "7", []),
        ("pythonic", "[f(a='x', b=[1, {'c': None}]), g()]", [("f", {"a": "x", "b": [1, {"c": None}]}), ("g", {})]),
        ("pythonic", "[f(a=__import__('os').getcwd())]", [("f", {})]),
        ("pythonic", "[os.system(a=1)]", [("", {})]),
        ("pythonic", "[" * 5000, [("", {})]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', [("f", {"a": 1})]),
    ],
)
def test_calls_are_read_in_the_form_of_the_models_family(form: str, text: str, found: list[Any]) -> None:
    assert [(call.name, dict(call.arguments)) for call in calls_in(text, form)] == found


def test_tools_are_called_in_processes_of_their_own_with_special_tokens_shown() -> None:
    with Host(EnvironmentConfig(tools=(own("weather"), "calculator"))) as host:
        assert host.reads_special_tokens
        host.start((0, 0, 0), {}, 0)
        host.answers.get(timeout=60)
        host.step((0, 0, 0), hermes("calculator", expression="10**2"))
        (said,) = host.answers.get(timeout=60)[1].messages
        assert (said.content, said.role, said.name) == ("100", "tool", "calculator")


def test_recipes_hold_the_hash_of_a_tools_source() -> None:
    config = EnvironmentConfig(tools=(own("weather"), "calculator"))
    before = recipe_of_environment(config)
    assert set(before["tools"]) == {own("weather"), "calculator"} and before["tools"]["calculator"] is None
    assert len(before["tools"][own("weather")]) == 64


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1/4", "0.25"), ("-2**2", "-4"), ("2**3**2", "512"), ("7 % 3 - 1e", None), ("(1", None), ("1/0", None), ("0**-1", None)],
)
def test_arithmetic_is_read_as_it_is_written(expression: str, value: str | None) -> None:
    if value is None:
        with pytest.raises(NotArithmetic):
            value_of(expression)
    else:
        assert value_of(expression) == value


@pytest.mark.parametrize(
    "expression", ["9**9**9", "(" * 300, "9" * 201, "--" * 80 + "1", "((((9**99)**99)**99)**99)", "2**-5000"]
)
def test_what_would_be_large_is_refused_before_it_is_worked_out(expression: str) -> None:
    with pytest.raises(NotArithmetic):
        value_of(expression)
