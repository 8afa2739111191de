"""Calls as vLLM's parsers read them, in texts as models of several families write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.common.errors import UserError
from pipeline.config.environment import EnvironmentConfig
from pipeline.environments.host import Host
from pipeline.environments.parsers import loaded, parser_of
from pipeline.sources.tools import schemas_of

TOKENS = ["<|im_end|>", "<|python_tag|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"]
TOKENS += [f"<|tool_{name}|>" for name in ("calls_section_begin", "calls_section_end", "call_begin", "call_end")]
TOKENS += ["<|tool_call_argument_begin|>", "<minimax:tool_call>", "</minimax:tool_call>", "<arg_key>", "</arg_key>"]
TWICE = [("calculator", {"expression": "2*3"}), ("calculator", {"expression": "7"})]
ONCE = TWICE[:1]
TEXTS: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "hermes": (
        'Let me see.\n<tool_call>\n{"name": "calculator", "arguments": {"expression": "2*3"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "7"}}\n</tool_call>',
        TWICE,
    ),
    "llama3_json": (
        '<|python_tag|>{"name": "calculator", "parameters": {"expression": "2*3"}}; '
        '{"name": "calculator", "parameters": {"expression": "7"}}',
        TWICE,
    ),
    "pythonic": ('[calculator(expression="2*3"), calculator(expression="7")]', TWICE),
    "qwen3_coder": (
        "<tool_call>\n<function=calculator>\n<parameter=expression>\n2*3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=calculator>\n<parameter=expression>\n7\n</parameter>\n</function>\n</tool_call>",
        TWICE,
    ),
    "mistral": (
        '[TOOL_CALLS] [{"name": "calculator", "arguments": {"expression": "2*3"}}, '
        '{"name": "calculator", "arguments": {"expression": "7"}}]',
        TWICE,
    ),
    "olmo3": ('<function_calls>\ncalculator(expression="2*3")\ncalculator(expression="7")\n</function_calls>', TWICE),
    "glm45": (
        "<tool_call>calculator\n<arg_key>expression</arg_key>\n<arg_value>2*3</arg_value>\n</tool_call>",
        ONCE,
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.calculator:0<|tool_call_argument_begin|>"
        '{"expression": "2*3"}<|tool_call_end|><|tool_calls_section_end|>',
        ONCE,
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="calculator">\n<parameter name="expression">2*3</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        ONCE,
    ),
}
UNREADABLE = {
    "hermes": '<tool_call>{"name": "calculator", "argum',
    "llama3_json": '<|python_tag|>{"name": "calculator"',
    "mistral": '[TOOL_CALLS] [{"name": 1',
    "olmo3": "<function_calls>\ncalculator(",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of bytes, with the special tokens of several families."""
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in TOKENS])
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    found.chat_template = "<tool_call>{{ messages[0].content }}</tool_call>"
    path = tmp_path_factory.mktemp("model")
    found.save_pretrained(path)
    base = Path(__file__).resolve().parents[3] / "data" / "base"
    (path / "config.json").write_bytes((base / "config.json").read_bytes())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_calls_of_a_family_are_read_by_its_parser(name: str, model: Path) -> None:
    parse = loaded(name, str(model), schemas_of(["calculator"]))
    text, calls = TEXTS[name]
    assert [(call.name, call.arguments, call.wrong) for call in parse(text)] == [(*call, None) for call in calls]
    assert parse("It is 6.") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_a_parser_cannot_read_is_no_answer(name: str, model: Path) -> None:
    (call,) = loaded(name, str(model), schemas_of(["calculator"]))(UNREADABLE[name])
    assert call.wrong == f"no call that the parser {name} can read"


@pytest.mark.slow
def test_a_call_that_never_ends_is_bounded(model: Path) -> None:
    (call,) = loaded("hermes", str(model), schemas_of(["calculator"]))("<tool_call>" + "[" * 30_000)
    assert call.wrong == "calls of more than 20,000 characters"


@pytest.mark.slow
def test_an_unknown_parser_is_refused_with_the_nearest_name(model: Path) -> None:
    with pytest.raises(UserError, match=r"vLLM has no parser llama3_jsn; did you mean llama3_json\?"):
        loaded("llama3_jsn", str(model), schemas_of(["calculator"]))


@pytest.mark.slow
def test_episodes_are_played_with_the_parser_of_the_chat_template(model: Path) -> None:
    config = EnvironmentConfig(tools=("calculator",), args={"parser": "auto"})
    with Host(config, model=model) as host:
        host.start((0, 0, 0), {}, 0)
        assert host.answers.get(timeout=60)[1].error is None
        host.step((0, 0, 0), TEXTS["hermes"][0])
        said = host.answers.get(timeout=60)[1]
        assert [(one.content, one.error) for one in said.messages] == [("6", False), ("7", False)] and not said.done
        host.step((0, 0, 0), UNREADABLE["hermes"])
        (said,) = host.answers.get(timeout=60)[1].messages
        assert said.error and said.content == "Error: no call that the parser hermes can read"


def test_the_parser_is_that_of_the_chat_template() -> None:
    assert parser_of("{{ '<tool_call>\\n<function=' + name }}") == "qwen3_coder"
    assert parser_of("<tool_call>\n{{ call }}") == "hermes"
    assert parser_of("<|python_tag|>") == "llama3_json"
    for template in (None, "{{ messages }}"):
        with pytest.raises(UserError, match=r"args\.parser: auto: the model's chat template writes calls in no known way"):
            parser_of(template)
